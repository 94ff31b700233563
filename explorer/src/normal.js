// Upper tail of the standard Normal distribution.

const ROOT = Math.sqrt(2 * Math.PI);
const SERIES_BELOW = 3;
const TERMS = 60;

/** P(Z > z) for z >= 0, to about twelve digits: a series around zero, and a continued fraction further out. */
export function upperTail(z) {
  const density = Math.exp(-0.5 * z * z) / ROOT;
  if (z < SERIES_BELOW) {
    let term = z;
    let sum = z;
    for (let k = 3; term > 1e-17 * sum; k += 2) {
      term *= (z * z) / k;
      sum += term;
    }
    return 0.5 - density * sum;
  }
  let rest = z;
  for (let k = TERMS; k > 0; k--) rest = z + k / rest;
  return density / rest;
}
