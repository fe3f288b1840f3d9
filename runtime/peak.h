// The floating-point ceiling of this machine, measured: what MFU is a share of.
#ifndef DSM_PEAK_H
#define DSM_PEAK_H

#include "runtime/pool.h"

// f32 multiply-adds per second, counted as two operations each, with all threads of the pool busy
// on independent fused multiply-adds in registers. Takes about 20 ms. 0 where there is no such
// instruction. The best of several short rounds, because cores are sometimes lent away.
double peak_flops(pool *p);

#endif
