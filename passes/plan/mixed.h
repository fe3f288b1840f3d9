// Two kinds of recomputation in one plan: what their blocks must agree on.
//
// A plan may compute as many layers of each stage again as memory asks for, and leave the others
// as they are. Layers of both kinds stand next to each other, so that what goes from one to the
// next, the weights of a stack and their gradients must be placed alike in both blocks.
#ifndef DSM_PLAN_MIXED_H
#define DSM_PLAN_MIXED_H

#include "passes/plan/block.h"

// NULL when layers of `slow` may stand among those of `fast`; else why not, in words. A slow
// layer takes no less than a fast one, forward and backward together.
const char *mixed_why_not(const bl_block *fast, const bl_block *slow);

#endif
