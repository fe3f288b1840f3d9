// Kernels written by hand on codegen/prelude.cuh, for test_emu.c: each passes the emulation, and is
// caught by it after one edit. A kernel reaches from its D_KERNEL line to the next.

// y[i] += 2 x[i] for n numbers.
D_KERNEL(add_twice, 128, 2, 1) {
  const float *x = (const float *)a.buffer[0];
  float *y = (float *)a.buffer[1];
  d_i64 n = a.number[0], i = d_block() * 512 + d_tid() * 4;
  if (i + 4 <= n) {
    d_vec<float, 4> u = d_load<4>(x + i), v = d_load<4>(y + i);
    for (int k = 0; k < 4; k++) v.x[k] = d_fma(2.0f, u.x[k], v.x[k]);
    d_store(y + i, v);
  } else {
    for (; i < n; i++) {
      d_vec<float, 1> v = {d_fma(2.0f, d_load<1>(x + i).x[0], d_load<1>(y + i).x[0])};
      d_store(y + i, v);
    }
  }
}

// y = x / sum(x) for rows of n numbers; a block does two rows.
D_KERNEL(share_of_row, 128, 2, 2) {
  d_i64 rows = a.number[0], n = a.number[1];
  for (d_i64 row = 2 * d_block(); row < 2 * d_block() + 2 && row < rows; row++) {
    const float *x = (const float *)a.buffer[0] + row * n;
    float *y = (float *)a.buffer[1] + row * n, sum = 0.0f;
    for (d_i64 c = d_tid(); c < n; c += 128) sum += d_load<1>(x + c).x[0];
    for (int mask = 16; mask; mask >>= 1) sum += d_shuffle_xor(sum, mask);
    d_vec<float, 1> part = {sum};
    if (d_tid() % 32 == 0) d_shared_store(d_tid() / 32 * 4, part);
    d_barrier();
    d_vec<float, 4> p = d_shared_load<float, 4>(0);
    sum = (p.x[0] + p.x[2]) + (p.x[1] + p.x[3]);
    d_barrier();
    for (d_i64 c = d_tid(); c < n; c += 128) {
      d_vec<float, 1> v = {d_div(d_load<1>(x + c).x[0], sum)};
      d_store(y + c, v);
    }
  }
}

// Each warp writes its 32 numbers in reverse, by way of shared memory.
D_KERNEL(warps_reversed, 64, 2, 0) {
  const int *x = (const int *)a.buffer[0] + d_block() * 64;
  int *y = (int *)a.buffer[1] + d_block() * 64;
  int lane = d_tid() % 32, at = d_tid() / 32 * 128;
  d_shared_store(at + 4 * lane, d_load<1>(x + d_tid()));
  d_warp_barrier();
  d_store(y + d_tid(), d_shared_load<int, 1>(at + 4 * (31 - lane)));
}

// y[block] = how many of its 64 numbers are above 9, where one of a warp is above 99: 1000.
D_KERNEL(above, 64, 2, 0) {
  int v = d_load<1>((const int *)a.buffer[0] + d_block() * 64 + d_tid()).x[0];
  int n = v > 9 ? 1 : 0;
  bool large = d_any(v > 99);
  for (int mask = 16; mask; mask >>= 1) n += d_shuffle_xor(n, mask);
  d_vec<int, 1> one = {large ? 1000 : n};
  if (d_tid() % 32 == 0) d_shared_store(d_tid() / 32 * 4, one);
  d_barrier();
  d_vec<int, 2> both = d_shared_load<int, 2>(0);
  one.x[0] = both.x[0] + both.x[1];
  if (d_tid() == 0) d_store((int *)a.buffer[1] + d_block(), one);
}

// To f16 and back; 128 numbers a block.
D_KERNEL(halves, 128, 3, 0) {
  d_i64 i = d_block() * 128 + d_tid();
  d_vec<d_u16, 1> half = {d_half_bits(d_load<1>((const float *)a.buffer[0] + i).x[0])};
  d_vec<float, 1> back = {d_half_real(half.x[0])};
  d_store((d_u16 *)a.buffer[1] + i, half);
  d_store((float *)a.buffer[2] + i, back);
}

// C[m, n] = A[m, k] B[k, n] of bf16, sums in f32, k and n multiples of 8. A block does 64 x 64, each
// of its four warps 32 x 32. Parts of 32 along k are copied while the part before is multiplied.
// Rows in shared memory are 80 bytes apart (A) and 144 (B).
D_KERNEL(product, 128, 3, 3) {
  const d_bf16 *A = (const d_bf16 *)a.buffer[0], *B = (const d_bf16 *)a.buffer[1];
  float *C = (float *)a.buffer[2];
  d_i64 m = a.number[0], n = a.number[1], k = a.number[2], across = (n + 63) / 64;
  d_i64 row0 = d_block() / across * 64, col0 = d_block() % across * 64;
  int lane = d_tid() % 32, warp = d_tid() / 32, wr = warp / 2 * 32, wc = warp % 2 * 32;
  float acc[2][4][4];
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;
  d_vec<d_u32, 4> zeros = {{0, 0, 0, 0}};
  int part = 0;
  for (d_i64 k0 = -32; k0 < k; k0 += 32, part ^= 1) {
    d_i64 next = k0 + 32;
    if (next < k) {
      int to = (part ^ 1) * (64 * 80 + 32 * 144);
      for (int i = d_tid(); i < 256; i += 128) {
        int r = i / 4, c = i % 4 * 8, at = to + r * 80 + c * 2;
        if (row0 + r < m && next + c < k) {
          d_copy16(at, A + (row0 + r) * k + next + c);
        } else {
          d_shared_store(at, zeros);
        }
      }
      for (int i = d_tid(); i < 256; i += 128) {
        int r = i / 8, c = i % 8 * 8, at = to + 64 * 80 + r * 144 + c * 2;
        if (next + r < k && col0 + c < n) {
          d_copy16(at, B + (next + r) * n + col0 + c);
        } else {
          d_shared_store(at, zeros);
        }
      }
    }
    d_copies_end();
    if (k0 >= 0) {
      d_copies_wait<1>();
      d_barrier();
      int from = part * (64 * 80 + 32 * 144);
      for (int kk = 0; kk < 32; kk += 16) {
        d_u32 fa[2][4], fb[2][4];
        for (int i = 0; i < 2; i++)
          d_matrices(fa[i], from + (wr + 16 * i + lane % 16) * 80 + (kk + lane / 16 * 8) * 2);
        for (int j = 0; j < 2; j++)
          d_matrices_turned(fb[j], from + 64 * 80 + (kk + lane % 16) * 144 +
                                       (wc + 16 * j + lane / 16 * 8) * 2);
        for (int i = 0; i < 2; i++)
          for (int j = 0; j < 4; j++)
            d_mma(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1], d_bf16());
      }
      d_barrier();
    }
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int h = 0; h < 2; h++) {
        d_i64 row = row0 + wr + 16 * i + 8 * h + lane / 4, col = col0 + wc + 8 * j + lane % 4 * 2;
        d_vec<float, 2> v = {{acc[i][j][2 * h], acc[i][j][2 * h + 1]}};
        if (row < m && col < n) d_store(C + row * n + col, v);
      }
}
