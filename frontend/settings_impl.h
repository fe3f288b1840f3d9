// The slots of a job's settings: what frontend/settings.c fills and frontend/job.c reads.
#ifndef DSM_FRONTEND_SETTINGS_IMPL_H
#define DSM_FRONTEND_SETTINGS_IMPL_H

#include "frontend/sema_impl.h"

typedef enum slot_kind { SLOT_PARAM, SLOT_DIM, SLOT_KEY, SLOT_CALL, SLOT_PART } slot_kind;

typedef struct slot {
  slot_kind kind;
  const char *name;   // "layers", "lr"
  const char *full;   // "gpt2.layers", "train.optimizer.lr"
  ident at;           // where it is declared; text NULL for keys
  const expr *given;  // NULL: not set
  const expr *text;   // PARAM: the text's own default, for its kind
  const expr *bound;  // DIM
  val fallback;       // used when nothing was given; VAL_ERROR: there is none
  const char *origin;
  span where;
  int state;  // 0 not yet, 1 being evaluated, 2 done
  val value;
} slot;

struct settings {
  lowering *lw;
  job *job;
  const model *body;
  name_list chain;  // names of the model and its bases
  VEC(slot *) slots;
  bool lenient;
};

// Makes the slots of model `m` and of the job, and fills them from the model's variants, the
// section (NULL: none) and `--set`. False after an error, which has been reported.
bool settings_fill(settings *st, const model *m, const section *sec, setting_list sets);
// The key or dim of this name: what a train section sets. NULL when there is none.
slot *settings_key(const settings *st, const char *name);
// The slot's value, evaluated when first asked for; VAL_ERROR after a report.
const val *settings_slot_value(settings *st, slot *s);

#endif
