// Dark and light: as the system is set, until the reader switches.

import { find } from "./dom.js";

const dark = window.matchMedia("(prefers-color-scheme: dark)");

export const current = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");

export function onTheme(changed) {
  const button = find("theme");
  const name = () => {
    const other = current() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "Dark theme" : "Light theme";
  };
  const tell = () => {
    name();
    changed(current());
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = current() === "dark" ? "light" : "dark";
    tell();
  });
  dark.addEventListener("change", () => document.documentElement.dataset.theme ?? tell());
  name();
}
