// Plans whose mesh has an axis `pipeline`: a module, a schedule, code and a program for each stage.
//
//   if (stages_wanted(k)) why = stages_compile(k, &o);      // in place of pass_run
//   ...
//   stages_code(c, k, one_program);                     // in place of one code image and program
#ifndef DSM_FRONTEND_VERB_STAGES_H
#define DSM_FRONTEND_VERB_STAGES_H

#include "frontend/verb_common.h"

// Whether what is built has more than one stage.
bool stages_wanted(const compiled *k);
// Runs the passes: those in front of the cut over k->module, the cut as the plan has it, the others
// over every stage. Fills k->stage, and k->module, k->schedule and k->cg with those of the stage
// that takes the most memory. NULL, or why not, in the user's words.
const char *stages_compile(compiled *k, const pass_options *o, cg_library library);
// Calls `one` for each stage, with a `compiled` that is this stage's, to make its image and
// program; keeps both.
void stages_code(cli *c, compiled *k, void (*one)(cli *c, compiled *k));

#endif
