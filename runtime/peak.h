// The two ceilings of this machine, measured: arithmetic, which MFU is a share of, and memory.
#ifndef DSM_PEAK_H
#define DSM_PEAK_H

#include "runtime/pool.h"

// f32 multiply-adds per second, counted as two operations each, with all threads of the pool busy
// on independent fused multiply-adds in registers. Takes about 20 ms. 0 where there is no such
// instruction. The best of several short rounds, because cores are sometimes lent away.
double peak_flops(pool *p);

// Bytes per second to and from memory with all threads of the pool: the better of reading one array
// and of a[i] = b[i] + s * c[i] (counted as three arrays; what the caches read before they write is
// not counted). Together the arrays are one and a half times the last-level cache, so that little
// of a round is still there when the next one begins. Takes 60 ms and the time to get that memory;
// 0 when there is not enough of it.
double peak_bandwidth(pool *p);

#endif
