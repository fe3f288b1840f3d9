// Values that are not finite: stopping a step before they reach the states, and finding where they
// began.
//
// A step has two parts. Everything before the first run that writes a state can be done as often as
// one likes with the same result: it reads states, arguments and inputs, and random draws are keyed
// by step and sample. So a driver does the first part, looks at loss and gradient norm, and only
// then lets the second part change the states. When they are bad it does the first part again with
// a check_values looking on, and the weights are still those of the step before.
//
//   uint32_t split = check_split(p, e, watched, n);
//   vm_call_part(m, e, &s, 0, split);
//   if (isfinite(vm_scalar(m, watched[0]))) {
//     vm_call_part(m, e, &s, split, e->runs);
//   } else {
//     check_values c;
//     STATUS_DO(check_clear(p, m));                 // then fill the inputs as before
//     STATUS_DO(check_again(&c, p, m, e, &s, split));
//     check_print(&text, &c, e);
//   }
#ifndef DSM_CHECK_H
#define DSM_CHECK_H

#include "runtime/base/str.h"
#include "runtime/vm.h"

// How many runs of `e` come before its first write to a state. `e->runs`, all of them, when one of
// the `watched` outputs is written only later: then nothing can be held back.
uint32_t check_split(const prog *p, const prog_entry *e, const prog_io *const *watched, int n);

// A written operand with a value that is not finite. Operands carry no type: 32-bit words are taken
// for f32, and of the many patterns of a NaN only the one that arithmetic makes counts, which small
// whole numbers that share a buffer never equal.
typedef struct check_hit {
  bool found;
  bool layered, loop;  // the task runs for several layers; once per micro-batch
  uint32_t task, instr, operand;
  int64_t layer, micro, sample0;
  int64_t element, elements;  // the first bad one, of how many
  int64_t count;              // bad ones
  float value;
} check_hit;

// The first infinity, and the first NaN: an infinity may be meant (a mask), a NaN never is.
typedef struct check_values {
  const prog *prog;
  check_hit infinite, nan;
} check_values;

// Zeros what calls left in the work region: instructions that write only a part of an operand must
// not be blamed for the rest. Inputs lie there too.
status *check_clear(const prog *p, vm *m) STATUS_MUST_USE;
// Executes runs 0 .. split-1 and checks what each instruction wrote.
status *check_again(check_values *c, const prog *p, vm *m, const prog_entry *e, const vm_step *s,
                    uint32_t split) STATUS_MUST_USE;
// A line for each hit, without newline at the end; nothing when there was none.
void check_print(sb *out, const check_values *c, const prog_entry *e);

// The first value of a state that is not finite. Weights and optimizer only: caches are work. With
// a GPU, vm_pull_states comes first.
typedef struct check_state {
  const prog_state *state;  // NULL: all are finite
  int64_t slice, element;
  double value;
} check_state;

check_state check_states(const prog *p, const vm *m);
// "optimizer state wte.weight.m is NaN at element 5 of [256, 256]"
void check_print_state(sb *out, const prog *p, const check_state *c);

// "NaN", "+Inf", "-Inf"; a finite number as it is.
const char *check_word(double v, char buf[32]);

#endif
