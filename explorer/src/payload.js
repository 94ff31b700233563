// What the page carries: one JSON header and the arrays that it names, each deflated and in base64.

const TYPES = { f4: Float32Array, f8: Float64Array, i1: Int8Array, u1: Uint8Array, u2: Uint16Array, f2: Uint16Array };

function bytesOf(element) {
  const text = element.textContent;
  element.remove(); // the text is as large as the data
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function inflated(element) {
  const stream = new Blob([bytesOf(element)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Undo the order of bytes that compresses best: first bytes of all numbers, then their second bytes, and so on. */
function inOrder(bytes, size) {
  if (size === 1) return bytes;
  const n = bytes.length / size;
  const out = new Uint8Array(bytes.length);
  for (let b = 0; b < size; b++) {
    const from = b * n;
    for (let i = 0, to = b; i < n; i++, to += size) out[to] = bytes[from + i];
  }
  return out;
}

export async function readPayload() {
  const header = JSON.parse(new TextDecoder().decode(await inflated(document.getElementById("lfm-header"))));
  const arrays = {};
  for (const [name, type] of Object.entries(header.arrays)) {
    const bytes = await inflated(document.getElementById(`lfm-${name}`));
    if (type === "json") {
      let read;
      arrays[name] = () => (read ??= JSON.parse(new TextDecoder().decode(bytes)));
    } else {
      const Type = TYPES[type];
      arrays[name] = new Type(inOrder(bytes, Type.BYTES_PER_ELEMENT).buffer);
    }
  }
  return { header, arrays };
}

/** The number that each pattern of 16 bits stands for. */
export function halfPrecision() {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    let value;
    if (exponent === 0) value = fraction * 2 ** -24;
    else if (exponent === 31) value = fraction ? NaN : Infinity;
    else value = (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 0x8000 ? -value : value;
  }
  return table;
}
