// First values of the states.
#ifndef DSM_INIT_H
#define DSM_INIT_H

#include "runtime/vm.h"

// Gives every state of a vm that was just opened its first value, and copies that of their weights:
// weights by their init. Normal and uniform draws are keyed by seed, the name under which a
// checkpoint keeps the slice, and the element's number in the whole slice (parts.h), so they depend
// neither on the schedule nor on the number of threads, nor on how the slice is cut among ranks: a
// rank makes the elements it has. What begins as zeros, optimizer states and caches above all, is
// left as vm_open made it: memory that generating never uses is never touched. So is padding.
void init_states(vm *m, const prog *p, pool *threads, uint64_t seed, int rank);

// Draw number i of a normal distribution with deviation 1, by Box-Muller in double.
double init_normal(uint64_t key, uint64_t i);

// The name of slice k: the '#' of a stacked state becomes its number. `buf` takes `n` bytes.
const char *init_state_name(const prog *p, const prog_state *s, int64_t k, char *buf, size_t n);

#endif
