// Text of a module. The format is described in ir/print.h; ir/parse.c reads it.
//
// Two walks with the same code: the first counts how often each nameless index occurs, the second
// writes. A nameless index that occurs once is written as its extent alone; one that occurs more
// often gets a name, because otherwise the text would lose that it is the same.
#include "ir/print.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

#include "ir/place.h"
#include "runtime/base/intern.h"

const char *const ir_state_classes[4] = {"weight", "optimizer", "copy", "cache"};
const char *const ir_init_names[5] = {"zeros", "ones", "normal", "uniform", "const"};
const char *const ir_entry_names[4] = {"train", "eval", "prefill", "decode"};
const char *const ir_partial_names[4] = {"none", "sum", "max", "lse"};

// Of values or of indices, by their ids: of a region few ids are written.
typedef struct name_entry {
  int seen;  // of an index: occurrences
  const char *text;
} name_entry;
typedef struct names {
  intern ids;
  VEC(name_entry) entry;  // ORDER ids
} names;

typedef struct printer {
  ir_module *m;
  arena *arena;
  sb out;
  bool counting;  // the first walk
  bool numbered;  // no hints: values are numbers
  names indices, values;
  intern_key key;
  map index_bases, value_bases;  // base name -> how many have it (as a pointer-sized number)
  int next;                      // number of the next nameless value
} printer;

size_t ir_base_name(const char *name) {
  size_t n = strlen(name);
  for (;;) {
    size_t i = n;
    while (i > 0 && isdigit((unsigned char)name[i - 1])) i--;
    if (i == n || i == 0 || name[i - 1] != '.') return n;
    n = i - 1;
  }
}

// ---- names -------------------------------------------------------------------------------------

// Its entry, which is made when it has none; good until another one is made.
static name_entry *name_of(printer *p, names *t, int id) {
  key_clear(&p->key);
  KEY_PUT(&p->key, id);
  t->ids.arena = p->arena;
  int n = intern_of(&t->ids, &p->key);
  if (n == t->entry.n) vec_push(p->arena, &t->entry, (name_entry){0, NULL});
  return &t->entry.at[n];
}

// "x", then "x.1", "x.2", ...
static const char *unique(printer *p, map *bases, const char *base) {
  intptr_t n = (intptr_t)map_get(bases, base);
  map_set(bases, base, (void *)(n + 1));
  return n ? arena_printf(p->arena, "%s.%d", base, (int)n) : base;
}

// The hint as a legal name: letters, digits, `_` and (for values) dots. NULL when nothing is left.
static const char *legal(printer *p, const char *hint, bool dots) {
  if (!hint) return NULL;
  char *s = arena_strdup(p->arena, hint);
  for (char *c = s; *c; c++)
    if (!isalnum((unsigned char)*c) && *c != '_' && !(dots && *c == '.'))
      *c = dots ? '_' : *c == '.' ? '.' : '_';
  s[ir_base_name(s)] = 0;
  if (!dots)
    for (char *c = s; *c; c++)
      if (*c == '.') *c = '_';
  if (!dots && isdigit((unsigned char)*s)) return arena_printf(p->arena, "_%s", s);
  return s[strspn(s, "0123456789.")] ? s : NULL;  // all digits would look like a numbered value
}

// The name is chosen where the value is first written, which is where it is defined.
static const char *value_text(printer *p, const ir_value *v) {
  const char **slot = &name_of(p, &p->values, v->id)->text;
  if (*slot) return *slot;
  const char *base = p->numbered ? NULL : legal(p, v->name, true);
  return *slot = base ? unique(p, &p->value_bases, base) : arena_printf(p->arena, "%d", p->next++);
}

// The name of a leaf, or "" when its extent says enough.
static const char *leaf_name(printer *p, const ir_index *x) {
  name_entry *own = name_of(p, &p->indices, x->id);
  own->seen += p->counting;
  if (!own->text) {
    const char *base = legal(p, x->name, false);
    if (!base && (own->seen > 1 || x->bound)) base = "d";
    own->text = base ? unique(p, &p->index_bases, base) : "";
  }
  return own->text;
}

static void leaf(printer *p, const ir_index *x) {
  const char *name = leaf_name(p, x);
  if (*name) sb_printf(&p->out, "%s%s", name, x->bound ? "<=" : "=");
  sb_printf(&p->out, "%lld", (long long)x->size);
}

static void dim(printer *p, ir_index *x) {
  ir_index *part[IR_MAX_LEAVES];
  int n = ir_index_leaves(x, part, IR_MAX_LEAVES);
  if (n > 1) sb_put(&p->out, '(');
  for (int i = 0; i < n; i++) {
    if (i) sb_put(&p->out, ' ');
    leaf(p, part[i]);
  }
  if (n > 1) sb_put(&p->out, ')');
}

static void type(printer *p, const ir_type *t) {
  sb_puts(&p->out, ir_dtype_name(t->dtype));
  for (int i = 0; i < t->rank; i++) {
    sb_puts(&p->out, i ? ", " : "[");
    dim(p, t->dim[i]);
  }
  if (t->rank) sb_put(&p->out, ']');
}

// " cut(batch/data.micro, seq/tensor zigzag) partial(sum/data)": where a value lies on the mesh.
static void place(printer *p, const ir_place *at) {
  const ir_mesh *mesh = p->m->mesh;
  if (!at || !mesh) return;
  for (int i = 0; i < at->ncuts; i++) {
    const ir_cut *c = &at->cut[i];
    ir_index *part[IR_MAX_LEAVES];
    int n = ir_index_leaves(c->index, part, IR_MAX_LEAVES);
    sb_puts(&p->out, i ? ", " : " cut(");
    if (n > 1) sb_put(&p->out, '(');
    for (int k = 0; k < n; k++) sb_printf(&p->out, k ? " %s" : "%s", leaf_name(p, part[k]));
    if (n > 1) sb_put(&p->out, ')');
    for (int k = 0; k < c->naxes; k++)
      sb_printf(&p->out, "%c%s", k ? '.' : '/', mesh->axis[c->axis[k]].name);
    if (c->pattern == PATTERN_ZIGZAG) sb_puts(&p->out, " zigzag");
  }
  if (at->ncuts) sb_put(&p->out, ')');
  if (at->partial == PARTIAL_NONE) return;
  sb_printf(&p->out, " partial(%s", ir_partial_names[at->partial]);
  char before = '/';
  for (int a = 0; a < mesh->naxes; a++) {
    if (!(at->partial_axes >> a & 1)) continue;
    sb_printf(&p->out, "%c%s", before, mesh->axis[a].name);
    before = '.';
  }
  sb_put(&p->out, ')');
}

// "mesh data.0=2, data.1=4, micro=8 time"
static void mesh_text(printer *p, const ir_mesh *mesh) {
  for (int i = 0; i < mesh->naxes; i++) {
    const ir_axis *a = &mesh->axis[i];
    sb_printf(&p->out, "%s%s=%lld", i ? ", " : "mesh ", a->name, (long long)a->size);
    if (a->time) sb_puts(&p->out, " time");
  }
  if (mesh->naxes) sb_put(&p->out, '\n');
}

// ---- literals ----------------------------------------------------------------------------------

static void number(printer *p, double x) {
  char buf[32];
  sb_puts(&p->out, isnan(x) ? "nan" : str_double(buf, x));
}

static void quoted(printer *p, const char *s) {
  sb_put(&p->out, '"');
  for (; s && *s; s++) {
    unsigned char c = (unsigned char)*s;
    if (c == '"' || c == '\\')
      sb_printf(&p->out, "\\%c", c);
    else if (c < 0x20 || c == 0x7f)
      sb_printf(&p->out, "\\x%02x", c);
    else
      sb_put(&p->out, *s);
  }
  sb_put(&p->out, '"');
}

// The key says which type the value has: the op table knows.
static void attr(printer *p, const ir_attr *a) {
  sb_printf(&p->out, "%s=", a->key);
  switch (a->kind) {
    case ATTR_INT: sb_printf(&p->out, "%lld", (long long)a->i); break;
    case ATTR_FLOAT: number(p, a->f); break;
    case ATTR_STR: quoted(p, a->s); break;
    case ATTR_INTS:
      sb_put(&p->out, '[');
      for (int i = 0; i < a->n; i++) sb_printf(&p->out, i ? ", %lld" : "%lld", (long long)a->v[i]);
      sb_put(&p->out, ']');
      break;
  }
}

// ---- ops and regions ---------------------------------------------------------------------------

static void indent(printer *p, int depth) {
  for (int i = 0; i < depth; i++) sb_puts(&p->out, "  ");
}

static void body(printer *p, const ir_region *r, int depth);

// Lists of several types with dimensions get a line each; scalars stay on one.
static void separate(printer *p, int i, bool lines, int depth) {
  if (lines) {
    sb_puts(&p->out, i ? ",\n" : "\n");
    indent(p, depth);
  } else if (i) {
    sb_puts(&p->out, ", ");
  }
}

static void region(printer *p, const ir_region *r, int depth) {
  sb_put(&p->out, '\n');
  indent(p, depth);
  sb_puts(&p->out, "region(");
  bool lines = false;
  for (int i = 0; i < r->args.n; i++) lines = lines || (i && r->args.at[i]->type.rank);
  for (int i = 0; i < r->args.n; i++) {
    separate(p, i, lines, depth + 2);
    sb_printf(&p->out, "%%%s : ", value_text(p, r->args.at[i]));
    type(p, &r->args.at[i]->type);
    place(p, r->args.at[i]->place);
  }
  sb_puts(&p->out, ") {\n");
  body(p, r, depth + 1);
  indent(p, depth);
  sb_put(&p->out, '}');
}

// One line, and its regions below it.
static void op_text(printer *p, const ir_op *op, int depth) {
  indent(p, depth);
  for (int i = 0; i < op->nout; i++)
    sb_printf(&p->out, i ? ", %%%s" : "%%%s", value_text(p, op->out[i]));
  sb_printf(&p->out, op->nout ? " = %s(" : "%s(", ir_info(op->code)->name);
  for (int i = 0; i < op->nin; i++)
    sb_printf(&p->out, i ? ", %%%s" : "%%%s", value_text(p, op->in[i]));
  sb_put(&p->out, ')');
  for (int i = 0; i < op->nattrs; i++) {
    sb_puts(&p->out, i ? ", " : " {");
    attr(p, &op->attr[i]);
  }
  if (op->nattrs) sb_put(&p->out, '}');
  if (op->path) {
    sb_puts(&p->out, " @");
    quoted(p, op->path);
  }
  if (op->recompute) sb_puts(&p->out, " recompute");
  bool lines = false;
  for (int i = 0; i < op->nout; i++) lines = lines || (i && op->out[i]->type.rank);
  for (int i = 0; i < op->nout; i++) {
    if (!i) sb_puts(&p->out, lines ? " :" : " : ");
    separate(p, i, lines, depth + 2);
    type(p, &op->out[i]->type);
    place(p, op->out[i]->place);
  }
  for (int i = 0; i < op->nregions; i++) region(p, op->region[i], depth + 1);
  sb_put(&p->out, '\n');
}

static void body(printer *p, const ir_region *r, int depth) {
  for (int i = 0; i < r->ops.n; i++) op_text(p, r->ops.at[i], depth);
  if (!r->yield.n) return;
  indent(p, depth);
  sb_puts(&p->out, "yield ");
  for (int i = 0; i < r->yield.n; i++)
    sb_printf(&p->out, i ? ", %%%s" : "%%%s", value_text(p, r->yield.at[i]));
  sb_put(&p->out, '\n');
}

// ---- the module --------------------------------------------------------------------------------

// Defaults are left out.
static void state(printer *p, const ir_state *s) {
  sb_puts(&p->out, "state ");
  quoted(p, s->name);
  sb_puts(&p->out, " : ");
  type(p, &s->type);
  sb_printf(&p->out, " %s %s", ir_state_classes[s->cls], ir_init_names[s->init]);
  if (s->init == INIT_NORMAL || s->init == INIT_UNIFORM || s->init == INIT_CONST) {
    sb_put(&p->out, '(');
    number(p, s->init_a);
    sb_put(&p->out, ')');
  }
  if (s->stacked) sb_printf(&p->out, " layers %d step %d", s->first, s->step);
  if (s->trained) sb_puts(&p->out, " trained");
  if (s->weight_decay != 0) sb_puts(&p->out, " decay "), number(p, s->weight_decay);
  if (s->lr_scale != 0) sb_puts(&p->out, " lr "), number(p, s->lr_scale);
  if (s->of) sb_puts(&p->out, " of "), quoted(p, s->of);
  sb_put(&p->out, '\n');
}

static void module(printer *p) {
  ir_module *m = p->m;
  sb_puts(&p->out,
          m->stage != IR_GRAPH
              ? "; dsmc LOCAL: what one stage of one rank computes for one micro-batch.\n"
              : "; dsmc GRAPH: what to compute, over the global shapes of the whole batch.\n");
  sb_puts(&p->out,
          "; %result = op(%operand, ...) {attributes} @\"path in the text\" : element[dimensions]\n"
          "; A dimension is an index, name=extent; (a=2 b=3) is one dimension, the product a . b.\n"
          "; Where names are equal, indices are. States keep their value between calls.\n");
  sb_puts(&p->out, "module ");
  quoted(p, m->name);
  sb_puts(&p->out, m->stage != IR_GRAPH ? " local\n" : " graph\n");
  if (m->batch) {
    sb_puts(&p->out, "samples ");
    dim(p, m->batch);
    sb_put(&p->out, '\n');
  }
  if (m->mesh) mesh_text(p, m->mesh);
  for (int i = 0; i < m->states.n; i++) state(p, m->states.at[i]);
  for (int i = 0; i < m->funcs.n; i++) {
    const ir_func *f = m->funcs.at[i];
    p->value_bases = (map){.arena = p->arena};
    p->next = 0;
    sb_printf(&p->out, "\nfunc %s %s {\n", f->name, ir_entry_names[f->kind]);
    body(p, f->body, 1);
    sb_puts(&p->out, "}\n");
  }
}

static void start(printer *p, bool counting) {
  p->counting = counting;
  p->out = (sb){.arena = p->arena};
  p->next = 0;
  p->index_bases = p->value_bases = (map){.arena = p->arena};
  p->values = (names){0};
  p->key.arena = p->arena;
  for (int i = 0; i < p->indices.entry.n; i++)
    p->indices.entry.at[i].text = NULL;  // what was seen stays
}

char *ir_print(ir_module *m, arena *a) {
  arena scratch;  // names and the first walk; the text itself is the caller's
  arena_init(&scratch);
  scratch.oom = a->oom;
  scratch.oom_ctx = a->oom_ctx;
  printer p = {.m = m, .arena = &scratch};
  start(&p, true);
  module(&p);
  start(&p, false);
  module(&p);
  char *text = arena_strdup(a, sb_str(&p.out));
  arena_free(&scratch);
  return text;
}

// Names every value used in `r` but defined outside, before numbering begins.
static void name_outside(printer *p, const ir_region *r) {
  for (int i = 0; i < r->args.n; i++) value_text(p, r->args.at[i]);
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++) {
      name_entry *own = name_of(p, &p->values, op->in[k]->id);
      if (!own->text) own->text = arena_printf(p->arena, "v%d", op->in[k]->id);
    }
    for (int k = 0; k < op->nregions; k++) name_outside(p, op->region[k]);
    for (int k = 0; k < op->nout; k++) value_text(p, op->out[k]);
  }
  for (int i = 0; i < r->yield.n; i++) {
    name_entry *own = name_of(p, &p->values, r->yield.at[i]->id);
    if (!own->text) own->text = arena_printf(p->arena, "v%d", r->yield.at[i]->id);
  }
}

const char *ir_print_region(ir_region *r, arena *a) {
  arena scratch;
  arena_init(&scratch);
  scratch.oom = a->oom;
  scratch.oom_ctx = a->oom_ctx;
  printer p = {.m = r->module, .arena = &scratch, .numbered = true};
  start(&p, true);
  start(&p, false);
  name_outside(&p, r);
  region(&p, r, 0);
  const char *text = arena_strdup(a, sb_str(&p.out));
  arena_free(&scratch);
  return text;
}
