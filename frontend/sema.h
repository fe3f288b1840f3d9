// From syntax trees to a GRAPH module: names, settings, sizes, lowering.
//
//   sema_program *p = sema_open(a, d, "gpt2.dsm:gpt2_xl");    // reads the file and its imports
//   job *j = p ? sema_job(p, p->asked, sets) : NULL;     // text < variant < job section < --set
//   ir_module *m = j ? sema_lower(p, j, SEMA_TRAIN | SEMA_DECODE) : NULL;
//   if (diags_errors(d)) ...                             // NULL results have been reported
//
// A *job* is everything that the text and `--set` say about what is computed: the model with its
// params and dims, the optimizer and its schedule, the data. It is plain data: nothing in it but
// the parsed `names` maps refers to the tree.
//
// sema_lower makes one module with the functions asked for. They share the states:
//
//   train_step   forward with dropout; `output loss` and the other scalar outputs (autodiff and the
//                optimizer are passes)
//   evaluate     the same without dropout
//   prefill      the slice that computes `output logits`; batch 1, the decoding dim at its bound;
//                writes the caches
//   decode       the same for one position, reading and extending the caches
//
// The paths of ops, keys of random numbers: chain of paths, then the statement's name, without
// layer numbers; "/2" behind it where it occurs again, "+q" in part q of a period of layers. A name
// of a state is a checkpoint's up to `@` (frontend/lower_weights.c).
#ifndef DSM_FRONTEND_SEMA_H
#define DSM_FRONTEND_SEMA_H

#include <stdio.h>

#include "frontend/ast.h"
#include "frontend/diag.h"
#include "ir/ir.h"

// ---------------------------------------------------------------------------------------------
// Programs: a file and all it imports
// ---------------------------------------------------------------------------------------------

typedef struct sema_program {
  arena *arena;
  diags *diags;
  const char *path;         // of the main file
  const char *asked;        // NAME of `FILE:NAME`; NULL when none was given
  VEC(file *) files;        // main file first
  map models, blocks, fns;  // name -> model *, block *, fn *, of all files
  VEC(section *) sections;  // of all files, main file's first
  int main_sections;        // the first so many are of the main file
  const char *no_decode;    // why the module lowered last has no decode though it has logits
} sema_program;

// Opens `FILE` or `FILE:NAME`, parses it and what it imports and collects the definitions. NULL
// when the file cannot be read; other errors are in `d` and the program holds what is right.
sema_program *sema_open(arena *a, diags *d, const char *file_and_name);
// The same for a text in memory (tests); imports are relative to `path`.
sema_program *sema_open_text(arena *a, diags *d, const char *path, const char *text, size_t length);

// The first section of this kind with this name (`cluster selene`, `plan wide`); NULL when none.
// `name` NULL takes any.
const section *sema_section(const sema_program *p, const char *kind, const char *name);

// ---------------------------------------------------------------------------------------------
// Jobs
// ---------------------------------------------------------------------------------------------

typedef enum optimizer_kind { OPTIMIZER_ADAMW, OPTIMIZER_SGD } optimizer_kind;

typedef struct job_optimizer {
  optimizer_kind kind;
  double lr, beta1, beta2, eps, weight_decay, momentum;
  bool nesterov;
} job_optimizer;

// Learning rate at step s (from 0) of n: rises linearly to lr over `warmup` steps, then stays
// (constant), or falls to `floor` at step n along a half cosine or a line.
typedef enum schedule_kind { SCHEDULE_CONSTANT, SCHEDULE_COSINE, SCHEDULE_LINEAR } schedule_kind;

typedef struct job_schedule {
  schedule_kind kind;
  int64_t warmup;
  double floor;
} job_schedule;

// How a token stream becomes the inputs. READ_TENSORS: there is no rule, the data is a folder of
// safetensors with one tensor per input. Without `read`, a model whose inputs are `tokens` and
// `targets` of one shape gets READ_NEXT_TOKEN.
typedef enum read_kind { READ_TENSORS, READ_NEXT_TOKEN, READ_MASKED, READ_SPAN } read_kind;

typedef struct read_rule {
  read_kind kind;
  bool given;        // written in the job, not chosen by default
  double share;      // masked, span: share of tokens hidden
  double mean_span;  // span: mean length
} read_rule;

typedef struct job_dim {
  const char *name;
  int64_t extent;
  int64_t bound;  // from `<=`; 0 when none
} job_dim;

// One resolved setting, for reports: {"train.optimizer.lr", "0.0006", "gpt2.dsm:21"}.
typedef struct job_setting {
  const char *name, *value;
  const char *origin;  // "default", "FILE:LINE" or "--set"
} job_setting;

typedef struct weight_init {
  ir_init_kind kind;
  double a;
} weight_init;

// `weights "PATTERN" { ... }`: what it sets for the weights that match. Later rules win, key by
// key. sema_lower applies them to the module's states; `load` is kept for whoever loads.
typedef struct weight_rule {
  const char *pattern;
  span at;
  bool has_train, train;
  bool has_weight_decay, has_lr_scale, has_init;
  double weight_decay, lr_scale;
  weight_init init;
  const char *load;  // NULL when absent
} weight_rule;

// One line of a `names MODEL as MAP` section: our names = an invertible expression over theirs
// (strings, `transpose`, `concat`, `stack`, `reshape`).
typedef struct name_rule {
  const char *pattern;
  span at;
  const expr *theirs;
} name_rule;

typedef struct name_map {
  const char *name;  // after `as`; NULL when none
  span at;
  VEC(name_rule) rules;
} name_map;

typedef struct job {
  const char *name;        // after `as`, or the model's
  const char *model_name;  // of the variant chosen
  const model *body;       // the model whose body it is (the end of the chain of variants)
  const section *section;  // the train section; NULL: defaults
  int64_t batch;           // samples per optimizer step over all ranks
  VEC(job_dim) dims;       // all dims, `batch` included, in the order of the text
  job_optimizer optimizer;
  job_schedule schedule;
  int64_t steps;
  double clip;         // 0: none
  ir_dtype precision;  // of the operands of matrix products; what is stored and summed is f32
  int64_t seed;
  const char *data;  // the first path; NULL when none was given
  VEC(const char *) data_paths;
  read_rule read;
  bool shuffle;
  int64_t save_every;  // 0: only at the end
  VEC(weight_rule) weight_rules;
  VEC(name_map) name_maps;
  VEC(job_setting) settings;  // all, resolved
  map params;                 // name -> struct val * (frontend/sema_impl.h)
} job;

// Resolves the job or model `name`: the `as` name of a train section, or a model, which takes the
// train section of the nearest of its bases that has exactly one. NULL name: the only job, or the
// only model. Reports and returns NULL when that is not clear or a setting is wrong.
job *sema_job(sema_program *p, const char *name, setting_list sets);
// The same for checking: dims without value get small extents instead of an error.
job *sema_job_for_check(sema_program *p, const char *name, setting_list sets);

int64_t job_dim_extent(const job *j, const char *name);  // 0 when there is no such dim

// ---------------------------------------------------------------------------------------------
// Lowering
// ---------------------------------------------------------------------------------------------

enum {
  SEMA_TRAIN = 1,       // train_step
  SEMA_EVAL = 2,        // evaluate
  SEMA_DECODE = 4,      // prefill and decode; an error when the model cannot generate
  SEMA_TRY_DECODE = 8,  // the same, left out in silence when it cannot
  SEMA_OUTPUTS = 16,  // outputs: like evaluate, with all outputs of any shape and no need of a loss
};

// Makes a GRAPH module; NULL after errors. Of the caches only those exist that decode reads.
ir_module *sema_lower(sema_program *p, const job *j, unsigned entries);

// Number of learned values: each weight once, layers counted.
int64_t sema_parameters(const ir_module *m);

// ---------------------------------------------------------------------------------------------
// Verbs
// ---------------------------------------------------------------------------------------------

// `dsmc check`: every model and every job of the main file. Prints a line per model to `out`
// unless it is NULL. Errors are in p->diags.
void sema_check(sema_program *p, setting_list sets, FILE *out);

#endif
