// generate: a prefill of the whole prompt, then one decode call for each token.
//
// The prefill entry reads the padded context; its logits row of the last prompt position gives the
// first token. A decode call reads one token at position `past` and gives the next one. Choices are
// keyed by (seed, position), so a seed fixes the text.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"
#include "runtime/drivers/sample.h"
#include "runtime/dtype.h"

typedef struct generation {
  rt *r;
  const prog_entry *prefill, *decode;
  const prog_io *prefill_tokens, *prefill_logits, *decode_tokens, *decode_logits;
  int64_t context, vocab;
  int32_t *ids;  // prompt and what follows
  int64_t n, prompt;
  int64_t source_n;  // tokens the encoder reads; -1: there is no encoder
  bool text;         // bytes in and out; else numbers
  int64_t want;
  sampler sampler;
} generation;

// ---- inputs -----------------------------------------------------------------------------------

static void put_token(rt *r, const prog_io *io, int64_t col, int32_t v) {
  int64_t wide = v;
  int unit = dtype_of(io->dtype)->bytes;
  dtype_convert(vm_at(r->vm, io->offset) + col * unit, io->dtype, &wide, PROG_I64, 1);
}

static void clear_input(rt *r, const prog_io *io) {
  memset(vm_at(r->vm, io->offset), 0, (size_t)io->bytes);
}

static status *check_id(const generation *g, int64_t id, const char *what) {
  if (id < 0 || id >= g->vocab)
    return status_error("%s: token %" PRId64 " is not in the vocabulary (0 to %" PRId64 ")", what,
                        id, g->vocab - 1);
  return NULL;
}

// Text as bytes, or a list of numbers. `out` has room for `cap`; *n is what the option gave.
static status *read_ids(const generation *g, const char *text, const char *numbers,
                        const char *what, int32_t *out, int64_t cap, int64_t *n) {
  *n = 0;
  const char *p = text ? text : numbers;
  while (p && *p) {
    int64_t id;
    if (text) {
      id = (unsigned char)*p++;
    } else {
      char *end;
      id = strtoll(p, &end, 10);
      if (end == p) return status_exit(2, "--%s takes numbers between commas, not `%s`", what, p);
      p = end + strspn(end, ", ");
    }
    STATUS_DO(check_id(g, id, what));
    if (*n < cap) out[*n] = (int32_t)id;
    ++*n;
  }
  return NULL;
}

static bool is_ids(const prog_io *io, uint32_t rank) {
  return io && io->rank == rank && dtype_of(io->dtype)->kind == 'I';
}

static bool is_logits(const prog_io *io) {
  return io && io->rank >= 2 && dtype_convertible(PROG_F64, io->dtype);
}

static status *find_entries(generation *g) {
  rt *r = g->r;
  g->prefill = prog_entry_of(r->prog, PROG_PREFILL);
  g->decode = prog_entry_of(r->prog, PROG_DECODE);
  if (!g->prefill || !g->decode)
    return status_error(
        "this model cannot generate: the executable has no entries prefill and decode (a position "
        "of the model sees later ones, or it was built without them)");
  g->prefill_tokens = prog_input(r->prog, g->prefill, "tokens");
  g->prefill_logits = prog_output(r->prog, g->prefill, "logits");
  g->decode_tokens = prog_input(r->prog, g->decode, "tokens");
  g->decode_logits = prog_output(r->prog, g->decode, "logits");
  if (!is_ids(g->prefill_tokens, 2) || !is_ids(g->decode_tokens, 2) ||
      !is_logits(g->prefill_logits) || !is_logits(g->decode_logits))
    return status_error(
        "this model cannot generate: it needs an input tokens [batch, positions] and "
        "an output logits");
  g->context = g->prefill_tokens->dims[1];
  g->vocab = g->prefill_logits->dims[g->prefill_logits->rank - 1];
  if (g->decode_logits->dims[g->decode_logits->rank - 1] != g->vocab)
    return status_error("prefill and decode differ in the size of the vocabulary");
  return NULL;
}

// Inputs beside `tokens`: an encoder's source and its length; segments are 0.
static status *other_inputs(generation *g, const prog_entry *e) {
  rt *r = g->r;
  const options *o = &r->opt;
  const prog_io *source = prog_input(r->prog, e, "source");
  int64_t n = 0;
  if (source) {
    if (!is_ids(source, 2)) return status_error("input source is not i32[batch, positions]");
    if (!o->source && !o->source_tokens)
      return status_error("this model has an encoder: give what it reads with --source TEXT");
    int64_t cap = source->dims[1];
    int32_t *ids = arena_new(r->arena, int32_t, cap);
    STATUS_DO(read_ids(g, o->source, o->source_tokens, o->source ? "source" : "source-tokens", ids,
                       cap, &n));
    if (n > cap)
      return status_error("the source has %" PRId64 " tokens, the model reads %" PRId64, n, cap);
    clear_input(r, source);
    for (int64_t i = 0; i < n; i++) put_token(r, source, i, ids[i]);
    g->source_n = n;
  }
  for (uint32_t i = 0; i < e->inputs; i++) {
    const prog_io *io = &r->prog->ios[e->first_input + i];
    const char *name = prog_text(r->prog, io->name);
    if (str_eq(name, "tokens") || io == source) continue;
    bool length = str_eq(name, "length"), segments = str_eq(name, "segments");
    if (!length && !segments)
      return status_error("entry %s has an input `%s`, which generate cannot fill",
                          prog_text(r->prog, e->name), name);
    clear_input(r, io);
    // Samples beyond the first are padding; a length of 0 could leave a row without any key.
    for (int64_t k = 0; length && k < prog_io_elements(io); k++)
      put_token(r, io, k, k > 0 ? 1 : (int32_t)(g->source_n >= 0 ? g->source_n : g->n));
  }
  return NULL;
}

static status *read_prompt(generation *g) {
  rt *r = g->r;
  const options *o = &r->opt;
  bool encoder = prog_input(r->prog, g->prefill, "source") != NULL;
  if (o->prompt && o->prompt_tokens)
    return status_exit(2, "--prompt and --prompt-tokens exclude each other");
  g->text = !o->prompt_tokens && !o->source_tokens;
  g->ids = arena_new(r->arena, int32_t, g->context + 2);
  int64_t start = encoder ? 1 : 0, n;  // a decoder begins with token 0
  STATUS_DO(read_ids(g, o->prompt, o->prompt_tokens, o->prompt ? "prompt" : "prompt-tokens",
                     g->ids + start, g->context - start, &n));
  if (start + n > g->context)
    return status_error("the prompt has %" PRId64 " tokens, the context is %" PRId64, n,
                        g->context);
  g->n = g->prompt = start + n;
  if (g->n == 0) return status_error("nothing to go on from: give --prompt TEXT");
  return NULL;
}

static status *read_options(generation *g) {
  const options *o = &g->r->opt;
  sampler *s = &g->sampler;
  s->temperature = o->has_temperature ? o->temperature : 0.8;
  s->top_p = o->has_top_p ? o->top_p : 1;
  s->top_k = o->top_k;
  g->want = o->has_tokens ? o->tokens : 128;
  if (!(s->temperature >= 0)) return status_exit(2, "--temperature must be 0 or more");
  if (!(s->top_p > 0 && s->top_p <= 1))
    return status_exit(2, "--top-p must be above 0 and at most 1");
  return NULL;
}

// ---- running ----------------------------------------------------------------------------------

static void show(const generation *g, int32_t id) {
  FILE *out = g->r->env->out;
  if (!g->text)
    fprintf(out, "%s%d", g->n > g->prompt ? " " : "", id);
  else if (id < 256)
    fputc(id, out);
  else
    fprintf(out, "<%d>", id);  // a token that no byte stands for
  fflush(out);
}

static void set_past(rt *r, int64_t past) { vm_set_arg(r->vm, "past", (double)past); }

// Chooses the token at position n from row `row` of sample 0's logits.
static status *choose(generation *g, const prog_io *io, int64_t row, int32_t *out) {
  int bytes = dtype_of(io->dtype)->bytes;
  double draw = rng_unit(rng_key(g->r->seed, 0x67656eu), (uint64_t)g->n);
  const unsigned char *logits = vm_at(g->r->vm, io->offset) + row * g->vocab * bytes;
  if (!sampler_choose(&g->sampler, logits, io->dtype, draw, out))
    return status_exit(5, "the logits are not numbers at position %" PRId64, g->n);
  return NULL;
}

static status *first_token(generation *g, int32_t *out) {
  rt *r = g->r;
  clear_input(r, g->prefill_tokens);
  for (int64_t i = 0; i < g->n; i++) put_token(r, g->prefill_tokens, i, g->ids[i]);
  STATUS_DO(other_inputs(g, g->prefill));
  set_past(r, 0);
  STATUS_DO(vm_call(r->vm, g->prefill, &(vm_step){.seed = r->seed}));
  const prog_io *io = g->prefill_logits;
  // An entry that computes only the last row says so by its shape.
  return choose(g, io, io->rank >= 3 && io->dims[1] == g->context ? g->n - 1 : 0, out);
}

static status *next_token(generation *g, int32_t *out) {
  rt *r = g->r;
  clear_input(r, g->decode_tokens);
  put_token(r, g->decode_tokens, 0, g->ids[g->n - 1]);
  STATUS_DO(other_inputs(g, g->decode));
  set_past(r, g->n - 1);
  STATUS_DO(vm_call(r->vm, g->decode, &(vm_step){.past = g->n - 1, .seed = r->seed}));
  return choose(g, g->decode_logits, 0, out);
}

static status *make_tokens(generation *g) {
  rt *r = g->r;
  double t0 = rt_now(), t1 = t0;
  for (int64_t i = 0; i < g->want; i++) {
    int32_t id = 0;
    // The token at position n-1 is read at `past` n-1, which must lie inside the context.
    if (i > 0 && g->n > g->context) {
      fflush(r->env->out);
      if (!r->opt.quiet)
        fprintf(r->env->err, "\nnote: the context of %" PRId64 " tokens is full\n", g->context);
      break;
    }
    rt_begin_step(r, i + 1);
    STATUS_DO(i == 0 ? first_token(g, &id) : next_token(g, &id));
    rt_end_step(r);
    if (i == 0) t1 = rt_now();
    show(g, id);
    g->ids[g->n++] = id;
    if (*r->env->stop) break;
  }
  fputc('\n', r->env->out);
  double t2 = rt_now();
  int64_t made = g->n - g->prompt;
  if (r->opt.verbose && made > 0) {
    fprintf(r->env->err, "prompt: %" PRId64 " tokens in %.3f s\n", g->prompt, t1 - t0);
    if (made > 1)
      fprintf(r->env->err, "decode: %" PRId64 " tokens in %.3f s, %.1f tokens/s\n", made - 1,
              t2 - t1, (double)(made - 1) / (t2 - t1));
  }
  if (*r->env->stop)
    return status_exit(128 + *r->env->stop, "stopped by %s", rt_signal_name(*r->env->stop));
  return NULL;
}

status *drive_generate(rt *r) {
  generation g = {.r = r, .source_n = -1};
  STATUS_DO(find_entries(&g));
  STATUS_DO(read_options(&g));
  STATUS_DO(read_prompt(&g));
  STATUS_DO(rt_start(r));
  STATUS_DO(rt_first_weights(r));
  if (!r->opt.load && !r->opt.quiet)
    fprintf(r->env->err, "note: no --load: these are the initial weights\n");
  g.sampler.vocab = g.vocab;
  g.sampler.threads = r->threads;
  sampler_open(&g.sampler, r->arena);
  FILE *out = r->env->out;
  for (int64_t i = 0; g.text && r->opt.prompt && r->opt.prompt[i]; i++)
    fputc(r->opt.prompt[i], out);
  STATUS_DO(make_tokens(&g));
  // The prompt is a step of its own kind: it stays in.
  rt_print_profile(r, "token", false);
  return NULL;
}
