// The functions of a module: which modes, extents and outputs each has.
//
// The first function lowered is always in training mode, whether it was asked for or not: it
// settles how repeats are cut and weights stacked, and which dim is decoded along. All others
// follow it.
#include <string.h>

#include "frontend/sema_impl.h"

// ---------------------------------------------------------------------------------------------
// Removing what is not needed
// ---------------------------------------------------------------------------------------------

void clear_marks(ir_region *r) {
  for (int i = 0; i < r->args.n; i++) r->args.at[i]->mark = 0;
  for (int i = 0; i < r->ops.n; i++) {
    for (int k = 0; k < r->ops.at[i]->nout; k++) r->ops.at[i]->out[k]->mark = 0;
    for (int k = 0; k < r->ops.at[i]->nregions; k++) clear_marks(r->ops.at[i]->region[k]);
  }
}

static bool any_live(const ir_op *op) {
  for (int i = 0; i < op->nout; i++)
    if (op->out[i]->mark) return true;
  return false;
}

static void live_region(ir_region *r);

// A carried value is live when its result is, or when the body reads it.
static void live_repeat(ir_op *op) {
  ir_region *r = op->region[0];
  int nc = (int)ir_attr_int(op, "carried", 0);
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < op->nout; i++) {
      bool live = op->out[i]->mark || (i < nc && r->args.at[i + 1]->mark);
      if (!live) continue;
      op->out[i]->mark = 1;
      if (i < nc) r->args.at[i + 1]->mark = 1;
      if (!r->yield.at[i]->mark) again = true;
      r->yield.at[i]->mark = 1;
    }
    live_region(r);
    for (int i = 0; i < nc; i++)
      if (r->args.at[i + 1]->mark && !op->out[i]->mark) again = true;
  }
  for (int i = 0; i < op->nin; i++)
    if (r->args.at[i + 1]->mark) op->in[i]->mark = 1;
}

static void live_region(ir_region *r) {
  for (int i = r->ops.n - 1; i >= 0; i--) {
    ir_op *op = r->ops.at[i];
    bool root = op->code == IR_set || op->code == IR_output;
    if (!root && !any_live(op)) continue;
    if (op->code == IR_repeat)
      live_repeat(op);
    else
      for (int k = 0; k < op->nin; k++) op->in[k]->mark = 1;
  }
}

static void sweep(ir_region *r);

static void sweep_repeat(ir_op *op) {
  ir_region *r = op->region[0];
  int nc = (int)ir_attr_int(op, "carried", 0), ns = (int)ir_attr_int(op, "stacked", 0);
  int nin = 0, nout = 0, nargs = 1, carried = 0, stacked = 0;
  for (int i = 0; i < op->nout; i++) {
    if (!op->out[i]->mark) continue;
    r->yield.at[nout] = r->yield.at[i];
    op->out[nout] = op->out[i];
    op->out[nout]->pos = nout;
    nout++;
    if (i < nc) carried++;
  }
  for (int i = 0; i < op->nin; i++) {
    ir_value *inner = r->args.at[i + 1];
    if (!inner->mark) continue;
    if (i >= nc && i < nc + ns) stacked++;
    op->in[nin++] = op->in[i];
    inner->pos = nargs;
    r->args.at[nargs++] = inner;
  }
  op->nin = nin;
  op->nout = nout;
  r->args.n = nargs;
  r->yield.n = nout;
  ir_set_attr(r->module, op, ir_attr_i("carried", carried));
  ir_set_attr(r->module, op, ir_attr_i("stacked", stacked));
  sweep(r);
}

static void sweep(ir_region *r) {
  int n = 0;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_set && op->code != IR_output && !any_live(op)) continue;
    if (op->code == IR_repeat) sweep_repeat(op);
    r->ops.at[n++] = op;
  }
  r->ops.n = n;
}

void slice_dead(ir_region *body) {
  clear_marks(body);
  live_region(body);
  sweep(body);
}

// ---------------------------------------------------------------------------------------------
// The functions
// ---------------------------------------------------------------------------------------------

static lowering *new_lowering(sema_program *p, const job *j, ir_module *m, lowering_shared *sh,
                              lower_mode mode) {
  lowering *lw = arena_new(p->arena, lowering, 1);
  lw->arena = p->arena;
  lw->diags = p->diags;
  lw->program = p;
  lw->job = j;
  lw->m = m;
  lw->shared = sh;
  lw->mode = mode;
  lw->chain = "";
  lw->fuel = SEMA_FUEL;
  lw->ops = SEMA_OPS;
  lw->outputs.arena = lw->states_used.arena = p->arena;
  lw->scope = scope_new(lw, NULL, 0);
  return lw;
}

static void make_dims(lowering *lw, int decoded) {
  const job *j = lw->job;
  for (int i = 0; i < j->dims.n; i++) {
    const job_dim *d = &j->dims.at[i];
    dim_info now = {d->name, d->extent, NULL};
    if (lw->mode == LOWER_INFER) {
      if (str_eq(d->name, "batch")) now.extent = 1;
      if (i == decoded && d->bound) now.extent = d->bound;
    }
    // Training and evaluation share the batch index, so that a plan cuts it for both.
    bool batch = str_eq(d->name, "batch");
    bool shared = batch && lw->m->batch && lw->mode != LOWER_INFER;
    now.index = shared ? lw->m->batch : ir_index_new(lw->m, d->name, now.extent);
    if (batch && !lw->m->batch) lw->m->batch = now.index;
    vec_push(lw->arena, &lw->dims, now);
  }
}

static ir_func *lower_body_of(lowering *lw, const char *name, ir_entry_kind kind, int decoded) {
  ir_func *f = ir_func_new(lw->m, name, kind);
  frame *top = arena_new(lw->arena, frame, 1);
  top->kind = FRAME_FUNC;
  top->region = f->body;
  top->weight_by_name.arena = top->path_uses.arena = top->stacks.arena = lw->arena;
  lw->frame = top;
  make_dims(lw, decoded);
  lower_statements(lw, &lw->job->body->body, true);
  return f;
}

static void put_output(lowering *lw, ir_func *f, const char *name, ir_value *v) {
  ir_value *in[] = {v};
  ir_op *op = ir_op_raw(f->body, IR_output, in, 1, NULL, 0);
  op->span = v->span;
  ir_set_attr(lw->m, op, ir_attr_s("name", name));
}

static ir_value *output_of(const lowering *lw, const char *name) {
  const val *v = map_get(&lw->outputs, name);
  return v ? v->tensor : NULL;
}

// The scalar outputs; a loss must be among them.
static void scalar_outputs(lowering *lw, ir_func *f) {
  span at = lw->job->body->name.at;
  ir_value *loss = output_of(lw, "loss");
  if (!loss && !lw->failed_output) {
    diag *e = sema_error(lw, at, DIAG_NO_LOSS, "the model `%s` has no `output loss`",
                         lw->job->body->name.text);
    diag_note(e, "training minimises it: output loss = cross_entropy(logits, targets)");
  } else if (loss && (loss->type.rank || !ir_dtype_float(loss->type.dtype))) {
    diag *e = sema_error(lw, at, DIAG_NO_LOSS, "`output loss` is %s, not one real number",
                         ir_type_text(lw->arena, &loss->type));
    diag_note(e, "`mean(x)` makes one number of all");
  }
  for (int i = 0; i < lw->outputs.n; i++) {
    const val *v = lw->outputs.values[i];
    if (v->tensor->type.rank == 0) put_output(lw, f, lw->outputs.keys[i], v->tensor);
  }
}

// All outputs, whatever their shape.
static void every_output(lowering *lw, ir_func *f) {
  for (int i = 0; i < lw->outputs.n; i++) {
    const val *v = lw->outputs.values[i];
    put_output(lw, f, lw->outputs.keys[i], v->tensor);
  }
}

// The number of the dim before the vocabulary of `output logits`, or -1 with the reason in *why.
static int decoded_dim(const lowering *lw, const char **why) {
  ir_value *logits = output_of(lw, "logits");
  *why = "it has no `output logits`";
  if (!logits) return -1;
  *why = "the axis before the vocabulary in `output logits` is not a dim of the model";
  if (logits->type.rank < 2) return -1;
  const ir_index *x = ir_root(logits->type.dim[logits->type.rank - 2]);
  for (int i = 0; i < lw->dims.n; i++)
    if (ir_root(lw->dims.at[i].index) == x && !str_eq(lw->dims.at[i].name, "batch")) return i;
  return -1;
}

static void drop_func(ir_module *m, const ir_func *f) {
  for (int i = 0; i < m->funcs.n; i++)
    if (m->funcs.at[i] == f) {
      memmove(m->funcs.at + i, m->funcs.at + i + 1,
              sizeof *m->funcs.at * (size_t)(m->funcs.n - i - 1));
      m->funcs.n--;
      return;
    }
}

static void drop_states(ir_module *m, int from) {
  for (int i = from; i < m->states.n; i++) map_set(&m->state_by_name, m->states.at[i]->name, NULL);
  if (m->states.n > from) m->states.n = from;
}

// Why generating is out of the question, in half a sentence: "the mask of ... (line 17)".
static void remember_why(sema_program *p, const job *j, const diags *d, const char *why) {
  const char *prefix = arena_printf(p->arena, "`%s` cannot generate: ", j->model_name);
  for (int i = 0; i < d->all.n; i++) {
    const diag *e = d->all.at[i];
    if (e->level != DIAG_ERROR) continue;
    why = e->message + (str_starts(e->message, prefix) ? strlen(prefix) : 0);
    if (e->at.file) why = arena_printf(p->arena, "%s (line %d)", why, e->at.line);
    break;
  }
  p->no_decode = why;
}

static void cannot_decode(sema_program *p, const job *j, const char *why) {
  diag *e = diag_error(p->diags, j->body->name.at, DIAG_CANNOT_DECODE, "`%s` cannot generate: %s",
                       j->model_name, why);
  diag_note(e, "generating makes one position of `output logits` after the other");
}

// prefill and decode. Mistakes that only this reading of the text has are reported when it was
// asked for, and make it be left out when it was only tried.
static void lower_generate(sema_program *p, const job *j, ir_module *m, lowering_shared *sh,
                           const lowering *first, bool must) {
  const char *why;
  int decoded = decoded_dim(first, &why);
  if (decoded < 0) {
    if (must) cannot_decode(p, j, why);
    p->no_decode = output_of(first, "logits") ? why : NULL;
    return;
  }
  int states = m->states.n, funcs = m->funcs.n;
  ir_index *batch = m->batch;
  diags mine, *theirs = p->diags;
  diags_init(&mine, p->arena);
  lowering *lw = new_lowering(p, j, m, sh, LOWER_INFER);
  lw->diags = &mine;
  lw->follow = lw->quiet_notes = true;
  ir_func *f = lower_body_of(lw, "prefill", ENTRY_PREFILL, decoded);
  ir_value *logits = output_of(lw, "logits");
  bool ok = !mine.errors && !lw->spent && logits;
  if (ok) {
    put_output(lw, f, "logits", logits);
    slice_dead(f->body);
    ok = make_decode(lw, f, decoded, false);
  }
  if (ok) return;
  remember_why(p, j, &mine, "the text means something else without the loss");
  while (m->funcs.n > funcs) drop_func(m, m->funcs.at[m->funcs.n - 1]);
  drop_states(m, states);
  m->batch = batch;
  for (int i = 0; i < mine.all.n && must; i++) {
    vec_push(p->arena, &theirs->all, mine.all.at[i]);
    theirs->errors += mine.all.at[i]->level == DIAG_ERROR;
  }
  if (must && !mine.errors) cannot_decode(p, j, "the text means something else without the loss");
}

ir_module *sema_lower(sema_program *p, const job *j, unsigned entries) {
  int errors = diags_errors(p->diags);
  ir_module *m = ir_module_new(p->arena, j->model_name);
  lowering_shared *sh = arena_new(p->arena, lowering_shared, 1);
  sh->made_names.arena = p->arena;
  p->no_decode = NULL;

  lowering *first = new_lowering(p, j, m, sh, LOWER_TRAIN);
  ir_func *train = lower_body_of(first, "train_step", ENTRY_TRAIN, -1);
  if (entries & (SEMA_TRAIN | SEMA_EVAL)) scalar_outputs(first, train);
  if (!(entries & SEMA_TRAIN)) drop_func(m, train);
  if (diags_errors(p->diags) != errors) return NULL;
  apply_weight_rules(first, j, m);
  check_name_maps(first, j, m);

  if (entries & SEMA_EVAL) {
    lowering *lw = new_lowering(p, j, m, sh, LOWER_EVAL);
    lw->follow = lw->quiet_notes = true;
    scalar_outputs(lw, lower_body_of(lw, "evaluate", ENTRY_EVAL, -1));
  }
  if (entries & SEMA_OUTPUTS) {
    lowering *lw = new_lowering(p, j, m, sh, LOWER_EVAL);
    lw->follow = lw->quiet_notes = true;
    every_output(lw, lower_body_of(lw, "outputs", ENTRY_EVAL, -1));
  }
  if (entries & (SEMA_DECODE | SEMA_TRY_DECODE)) {
    ir_index *batch = m->batch;
    if (!(entries & (SEMA_TRAIN | SEMA_EVAL))) m->batch = NULL;
    lower_generate(p, j, m, sh, first, entries & SEMA_DECODE);
    if (!m->batch) m->batch = batch;
  }
  return diags_errors(p->diags) == errors ? m : NULL;
}

int64_t sema_parameters(const ir_module *m) {
  int64_t n = 0;
  for (int i = 0; i < m->states.n; i++)
    if (m->states.at[i]->cls == STATE_WEIGHT) n += ir_elements(&m->states.at[i]->type);
  return n;
}
