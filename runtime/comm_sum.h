// Sums of what ranks have.
//
//   const unsigned char *from[2] = {mine, other};
//   comm_add_up(PROG_F32, PROG_SUM, 2, from, 1, &out, 1000);
#ifndef DSM_COMM_SUM_H
#define DSM_COMM_SUM_H

#include <stdint.h>

// n elements of type PROG_F32, F64, BF16, F16, I32 or I64 that lie side by side, those of every
// rank: from[0] + from[1] + ... in this order, or (PROG_MAX) their greatest, to each of `outs`
// places. An output may be one of the inputs; else they are apart. 16-bit floats are added as f32
// and rounded once; whole numbers wrap around; a NaN is greater than any number.
void comm_add_up(uint32_t dtype, uint32_t reduce, int64_t ranks, const unsigned char *const *from,
                 int64_t outs, unsigned char *const *to, int64_t n);

#endif
