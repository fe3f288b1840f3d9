// What the 32 lanes of a warp do together, once all have come: shuffles, votes, ldmatrix, mma.
#include <string.h>

#include "runtime/dtype.h"
#include "tests/cuda_emu/emu_run.h"

static float real_of(uint32_t u) {
  float v;
  memcpy(&v, &u, sizeof v);
  return v;
}

// A NaN as the machine gives it; what rounds is the runtime's own.
uint16_t emu_half_bits(float v) { return v != v ? 0x7fff : dtype_to_f16(v); }

float emu_half_real(uint16_t v) { return dtype_from_f16(v); }

static float widened(uint32_t pair, int which, bool half) {
  uint32_t v = which ? pair >> 16 : pair & 0xffffu;
  return half ? emu_half_real((uint16_t)v) : real_of(v << 16);
}

// c += a b in the fragments that the prelude describes. Products of two 16-bit numbers are exact in
// f32; they are added one after another in order of k, each sum rounded to nearest. (A tensor core
// adds several at a time, with other roundings; nobody has written down which.)
static void multiply(emu_warp *w, bool half) {
  float a[16][16], b[16][8];
  for (int l = 0; l < EMU_LANES; l++) {
    const emu_lane *x = &w->lane[l];
    int g = l / 4, t = l % 4;
    for (int i = 0; i < 2; i++) {
      a[g][2 * t + i] = widened(x->a[0], i, half);
      a[g + 8][2 * t + i] = widened(x->a[1], i, half);
      a[g][2 * t + 8 + i] = widened(x->a[2], i, half);
      a[g + 8][2 * t + 8 + i] = widened(x->a[3], i, half);
      b[2 * t + i][g] = widened(x->b[0], i, half);
      b[2 * t + 8 + i][g] = widened(x->b[1], i, half);
    }
  }
  for (int l = 0; l < EMU_LANES; l++) {
    for (int i = 0; i < 4; i++) {
      int row = l / 4 + (i < 2 ? 0 : 8), col = 2 * (l % 4) + i % 2;
      float sum = w->lane[l].c[i];
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][col];
      w->lane[l].c[i] = sum;
    }
  }
}

static void matrices(emu_warp *w, int first_thread, bool turned) {
  for (int j = 0; j < 4; j++) {
    uint16_t m[8][8];
    for (int i = 0; i < 8; i++) {
      int lane = 8 * j + i;
      memcpy(m[i], emu_row(first_thread + lane, w->lane[lane].at, w->line), sizeof m[i]);
    }
    for (int l = 0; l < EMU_LANES; l++) {
      int g = l / 4, t = 2 * (l % 4);
      uint32_t low = turned ? m[t][g] : m[g][t], high = turned ? m[t + 1][g] : m[g][t + 1];
      w->lane[l].r[j] = low | high << 16;
    }
  }
}

void emu_together(emu_warp *w, int first_thread) {
  bool any = false;
  switch (w->kind) {
    case EMU_WARP_BARRIER: w->clock = ++emu_it.clock; break;
    case EMU_SHUFFLE:
      for (int l = 0; l < EMU_LANES; l++) w->lane[l].result = w->lane[l ^ w->lane[l].mask].value;
      break;
    case EMU_ANY:
      for (int l = 0; l < EMU_LANES; l++) any |= w->lane[l].value != 0;
      for (int l = 0; l < EMU_LANES; l++) w->lane[l].result = any;
      break;
    case EMU_MATRICES:
    case EMU_MATRICES_TURNED: matrices(w, first_thread, w->kind == EMU_MATRICES_TURNED); break;
    case EMU_MMA_BF16:
    case EMU_MMA_F16: multiply(w, w->kind == EMU_MMA_F16); break;
  }
}
