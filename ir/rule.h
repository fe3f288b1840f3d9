// Index rules: what an op says about the indices of its operands and results.
//
// The rule column of ir/ops.def is a small text:
//
//   "... n; n; n -> ... n; ...; ..."          layernorm(x, weight, bias) -> y, mean, rstd
//   "... s (kv_heads rep head); ... t (kv_heads head); ... -> ..."
//
// Operands are separated by `;`, results follow `->`. A word is an index, the same word the same
// index everywhere in the rule. `...` (or `...name`) stands for any number of dimensions, the same
// in all places; `(a b c)` is one dimension that is the ordered product of a, b and c. The extent
// of a part comes from an operand that shows it alone, from an attribute of the same name, or by
// division. `*` as a whole operand list tail means "any further operands, not looked at".
// Special rules: "*" broadcasts all operands to one shape (aligned at the last dimension, extent 1
// or a missing dimension repeats); "spec" takes the attribute `spec` (einsum); "raw" infers
// nothing; words behind it ("raw ...i ...h; ...i -> v ...h") say which indices are the same ones,
// for placements.
//
// From the rule follow the result types (ir_infer), the unification and refinement of indices, the
// verifier's check, and, with the kinds column, how placements propagate (ir/place.h).
#ifndef DSM_IR_RULE_H
#define DSM_IR_RULE_H

#include "ir/ir.h"

typedef enum ir_kind {
  KIND_PARALLEL,  // every position by itself
  KIND_SUM,       // reduced by sum: cutting it gives partial(sum)
  KIND_MAX,
  KIND_LSE,     // partial(lse): attention's (o, lse), logsumexp
  KIND_WHOLE,   // must not be cut
  KIND_PREFIX,  // causal prefix of another index
  KIND_TABLE,   // looked up: cutting gives a masked lookup and partial(sum)
  KIND_RANGE,   // kernels need the global position of each local element
} ir_kind;

// A rule, parsed. Words are numbered; word 0.. are names, products are lists of words.
#define RULE_MAX_WORDS 24
#define RULE_MAX_OPERANDS 8
typedef struct ir_rule_dim {
  int nwords;  // 1: a plain index; more: a product, outer to inner
  int word[4];
  bool ellipsis;  // stands for any number of dims; word[0] is its name, dots included
} ir_rule_dim;
typedef struct ir_rule_side {
  int n;
  ir_rule_dim dim[IR_MAX_RANK];
} ir_rule_side;
typedef struct ir_rule {
  bool broadcast, raw, spec, open;  // open: further operands are not looked at
  int nwords;
  const char *word[RULE_MAX_WORDS];
  ir_kind kind[RULE_MAX_WORDS];
  int nin, nout;
  ir_rule_side in[RULE_MAX_OPERANDS], out[RULE_MAX_OPERANDS];
} ir_rule;

// Parses the rule and kinds columns of `op`'s row (or its `spec`, whose words that are missing on
// the right are KIND_SUM). In a raw rule the words are those of the kinds column: "dim", "axes".
// Aborts on a bad row; a bad spec is refused earlier, by ir_infer.
void ir_rule_of(ir_module *m, const ir_op *op, ir_rule *out);
// The same with a message in place of the abort when the spec is bad.
const char *ir_rule_read(ir_module *m, const ir_op *op, ir_rule *out);

// The dimensions of the results (of `rule->nout` types; dtypes are not touched) as a rule of words
// gives them for the operands of `op`. Unifies and refines. NULL or a message.
const char *ir_rule_match(ir_module *m, const ir_op *op, const ir_rule *rule, ir_type *out);

// True when the results are linear in the operands i with among[i], taken together, for any values
// of the others: f(x + y) = f(x) + f(y) over them, so that a partial sum of them gives a partial
// sum. By the `linear` word of the row's kinds; false when `among` names none.
bool ir_is_linear(const ir_op *op, const bool *among);

// What `op` rounds operand k to as it reads it (`rounds` in ir/ops.def, attribute `round`), or
// DT_COUNT when it takes it as it is.
ir_dtype ir_rounds(const ir_op *op, int k);
// The sums and maxima, each of the size of a result, by which an op whose table index is cut makes
// its results whole (`parts` in ir/ops.def); 0: none, they are partial.
int ir_parts(const ir_op *op);
// The operand that holds the queries of attention, before keys, values and captures; -1: another
// op.
int ir_queries(const ir_op *op);
// True for products of matrices (`work:product` in ir/ops.def) of two operands or more.
bool ir_is_product(const ir_op *op);

// Infers result types of `op` from its operands, attributes and regions; unifies and refines
// indices. Returns NULL, or a message in the user's words ("`seq` is 64 here and 32 there").
// For "raw" rules it knows the movement ops (slice, transpose, concat, sum, repeat, ...) too; the
// few whose types are given by whoever builds them (input, arg, zeros, broadcast) return the types
// they have. After a message no index has changed. `out` has room for ir_result_count(op) types.
const char *ir_infer(ir_module *m, ir_op *op, ir_type *out, int *nout);

// How many results `op` has by its row, attributes and regions.
int ir_result_count(const ir_op *op);

// The first operand of the function that `op` carries for the elements of its result (`epilogue` in
// ir/ops.def), or -1 when it carries none; and where such operands would begin, or -1 when the op
// cannot carry a function.
int ir_epilogue(const ir_op *op);
int ir_epilogue_at(const ir_op *op);
// The operand at which the sums of a product start (`base` of einsum), or -1: they start at 0.
int ir_base(const ir_op *op);
// True when the op's results are sums over the micro-batches of a step: each call adds to what the
// last one left there, and the first one sets it.
bool ir_accumulates(const ir_op *op);

// Checks operands' number, attributes (allowed, required, of the right type) and the number of
// regions against the row. NULL or a message. ir_infer begins with it.
const char *ir_check_row(ir_module *m, const ir_op *op);

#endif
