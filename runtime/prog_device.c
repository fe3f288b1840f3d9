// Checks of what a program says about the machine it is for.
//
// A program for the host has code in its image and one stream. A program for a device has functions
// and modules instead, and its order moves bytes between the two homes. Neither has a bit of the
// other, so that nothing unchecked can hide in fields which one of them ignores.
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/prog_impl.h"

enum {
  MAX_THREADS = 1024,      // of a block, on all GPUs
  MAX_SHARED = 227 << 10,  // bytes of a block, on the one that has most
  MAX_REGISTERS = 255,
  MAX_ARGUMENT = 4096,  // bytes that a launch may pass
  MAX_EVENTS = 1 << 16,
};

static const char *text(const prog *p, prog_str s) { return s < p->nstrings ? p->strings + s : ""; }

bool prog_target(const char *target, int *number, bool *exact) {
  const char *at = str_starts(target, "sm_")        ? target + 3
                   : str_starts(target, "compute_") ? target + 8
                                                    : NULL;
  if (!at || *at < '1' || *at > '9') return false;
  char *end;
  long n = strtol(at, &end, 10);
  *exact = *end == 'a' || *end == 'f';
  *number = (int)n;
  return n >= 10 && n < 10000 && end[*exact] == 0;
}

// ---- the host -----------------------------------------------------------------------------------

static status *check_host(const prog *p, uint64_t code_bytes) {
  const prog_header *h = p->header;
  if (p->nfunctions || p->nnumbers || p->nmodules || *text(p, h->targets) || h->step_offset)
    BAD("it is for the host and has functions of a device");
  for (uint32_t i = 0; i < p->nkernels; i++) {
    const prog_kernel *k = &p->kernels[i];
    if (k->code_offset < 0 || (!k->gemm && (uint64_t)k->code_offset >= code_bytes))
      BAD("kernel %u lies outside the code or has a bad shape", i);
    if (k->function || k->first_number || k->numbers)
      BAD("kernel %u is for the host and names a function of a device", i);
  }
  return NULL;
}

// ---- a device -----------------------------------------------------------------------------------

static bool is_symbol(const char *s) {
  if (!*s || (*s >= '0' && *s <= '9')) return false;
  for (; *s; s++)
    if (!(*s >= 'a' && *s <= 'z') && !(*s >= 'A' && *s <= 'Z') && !(*s >= '0' && *s <= '9') &&
        *s != '_')
      return false;
  return true;
}

static status *check_functions(const prog *p) {
  for (uint32_t i = 0; i < p->nfunctions; i++) {
    const prog_function *f = &p->functions[i];
    if (!is_symbol(text(p, f->symbol))) BAD("function %u has no name", i);
    if (f->threads < 32 || f->threads > MAX_THREADS || f->threads % 32 ||
        f->shared_bytes > MAX_SHARED || f->registers > MAX_REGISTERS)
      BAD("function %s has a bad shape", text(p, f->symbol));
  }
  return NULL;
}

static status *check_kernels(const prog *p) {
  if (p->ngemms) BAD("it is for a device and has products that a library of the host does");
  for (uint32_t i = 0; i < p->nkernels; i++) {
    const prog_kernel *k = &p->kernels[i];
    if (k->code_offset) BAD("kernel %u is for a device and has code of the host", i);
    if (k->function >= p->nfunctions) BAD("kernel %u is an unknown function", i);
    if (k->numbers > p->nnumbers || k->first_number > p->nnumbers - k->numbers)
      BAD("kernel %u has numbers outside the table", i);
    if (prog_argument_bytes(k) > MAX_ARGUMENT || k->cells > INT32_MAX)
      BAD("kernel %u is more than one launch can be", i);
  }
  return NULL;
}

// The modules of one target hold all functions, each once, in order.
static status *check_target(const prog *p, const char *target) {
  uint64_t next = 0;
  for (uint32_t i = 0; i < p->nmodules; i++) {
    const prog_module *m = &p->modules[i];
    if (!str_eq(text(p, m->target), target)) continue;
    if (m->first_function != next)
      BAD("module %u holds functions from %u on, expected %llu", i, m->first_function,
          (unsigned long long)next);
    next += m->functions;
  }
  if (next != p->nfunctions)
    BAD("the modules for %s hold %llu functions of %u", target, (unsigned long long)next,
        p->nfunctions);
  return NULL;
}

static status *check_modules(const prog *p, uint64_t code_bytes) {
  for (uint32_t i = 0; i < p->nmodules; i++) {
    const prog_module *m = &p->modules[i];
    int number;
    bool exact;
    const char *target = text(p, m->target);
    if (!prog_target(target, &number, &exact) || m->kind > PROG_PTX ||
        str_starts(target, "sm_") != (m->kind == PROG_CUBIN))
      BAD("module %u is for no architecture", i);
    if (m->offset < 0 || m->offset % 8 || m->bytes < 1 || (uint64_t)m->offset > code_bytes ||
        (uint64_t)m->bytes > code_bytes - (uint64_t)m->offset)
      BAD("module %u lies outside the code", i);
  }
  for (uint32_t i = 0; i < p->nmodules; i++)
    STATUS_DO(check_target(p, text(p, p->modules[i].target)));
  if (p->nfunctions && !p->nmodules) BAD("it has functions and no module");
  // What the header says is there, in full.
  const char *list = text(p, p->header->targets);
  if (!*list) BAD("it is for a device and names no target");
  while (*list) {
    size_t n = strcspn(list, " ");
    bool found = !p->nfunctions;
    for (uint32_t i = 0; i < p->nmodules; i++) {
      const char *target = text(p, p->modules[i].target);
      found |= strlen(target) == n && memcmp(target, list, n) == 0;
    }
    if (!found) BAD("it names target %.*s and has no module for it", (int)n, list);
    list += n;
    list += strspn(list, " ");
  }
  return NULL;
}

static status *check_device(const prog *p, uint64_t code_bytes) {
  uint64_t step = p->header->step_offset;
  if (step % 8 || step > p->header->states_bytes ||
      sizeof(prog_step) > p->header->states_bytes - step)
    BAD("the call's step lies outside the states");
  STATUS_DO(check_functions(p));
  STATUS_DO(check_kernels(p));
  return check_modules(p, code_bytes);
}

// ---- instructions -------------------------------------------------------------------------------

static status *check_instr(const prog *p, uint32_t index) {
  const prog_instr *in = &p->instrs[index];
  bool device = p->header->machine != PROG_HOST;
  bool moves = in->op == RTOP_fetch || in->op == RTOP_evict;
  bool orders = in->op == RTOP_record || in->op == RTOP_wait;
  bool beside = in->stream == PROG_COMMUNICATION && p->nexchanges && in->op != RTOP_gemm;
  if (in->stream >= PROG_STREAMS || (!device && in->stream && !beside))
    BAD("instruction %u is on an unknown stream", index);
  if (!device && (moves || (orders && !p->nexchanges)))
    BAD("instruction %u is for a device, the program for the host", index);
  if (orders ? in->event >= p->header->events : in->event)
    BAD("instruction %u has an unknown event", index);
  for (uint32_t k = 0; k < in->operands; k++) {
    const prog_operand *o = &p->operands[in->first_operand + k];
    bool host = (in->op == RTOP_fetch && k == 1) || (in->op == RTOP_evict && k == 0);
    if (o->home != (host ? PROG_HOST_HOME : PROG_DEVICE_HOME))
      BAD("operand %u of instruction %u is not at home there", k, index);
    if (moves && o->writes != (k ? 1u : 2u))
      BAD("operand %u of instruction %u moves the wrong way", k, index);
  }
  return NULL;
}

status *prog_check_machine(const prog *p, uint64_t code_bytes) {
  const prog_header *h = p->header;
  if (h->machine >= PROG_MACHINES || h->targets >= p->nstrings) BAD("it is for no known machine");
  bool host = h->machine == PROG_HOST;
  if (h->events > (host && !p->nexchanges ? 0 : MAX_EVENTS)) BAD("it has %u events", h->events);
  STATUS_DO(host ? check_host(p, code_bytes) : check_device(p, code_bytes));
  for (uint32_t i = 0; i < p->ninstrs; i++) STATUS_DO(check_instr(p, i));
  return NULL;
}

status *prog_check_code(const prog *p, const unsigned char *code) {
  for (uint32_t i = 0; i < p->nmodules; i++) {
    const prog_module *m = &p->modules[i];
    if (m->kind == PROG_PTX && code[m->offset + m->bytes - 1] != 0)
      BAD("the text of module %u has no end", i);
  }
  return NULL;
}
