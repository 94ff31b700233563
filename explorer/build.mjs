// Bundles the sources into the package: build.mjs [FOLDER]

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2] ?? join(here, "..", "scvi_lfm", "pl", "_explorer");

await build({
  absWorkingDir: here,
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none", // all licences are in a file of their own
  outfile: join(target, "explorer.js"),
});

// all that the bundle is made of: dist files of some packages hold others
const { packages } = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8"));
const bundled = Object.keys(packages).filter((folder) => folder && !packages[folder].dev);
const texts = bundled.sort().map((place) => {
  const folder = join(here, place);
  const name = place.split("node_modules/").at(-1);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
  if (!file) throw new Error(`${name} has no licence text`);
  const text = readFileSync(join(folder, file), "utf8").replaceAll("\r\n", "\n").trim();
  return `${name} ${version} (${license})\n\n${text}\n`;
});
const line = `\n${"-".repeat(80)}\n\n`;
const head = "explorer.js holds the following packages, each under its licence.\n";
// and parts of two more, without their licences
const inside = readFileSync(join(here, "licenses-inside.txt"), "utf8");
writeFileSync(join(target, "THIRD_PARTY_LICENSES.txt"), [head, ...texts, inside].join(line));
