// eval: the mean loss over a data file.
#include <inttypes.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"

status *drive_eval(rt *r) {
  const prog_entry *e = prog_entry_of(r->prog, PROG_EVAL);
  if (!e) return status_error("this executable was built without evaluation");
  STATUS_DO(rt_start(r));
  STATUS_DO(rt_first_weights(r));
  if (!r->opt.load && !r->opt.quiet)
    fprintf(r->env->err, "note: no --load: these are the initial weights\n");
  data *d;
  STATUS_DO(rt_open_data(r, e, r->opt.data, false, &d));
  double loss = 0, start = rt_now();
  int64_t batches = 0;
  status *s = rt_evaluate(r, d, &loss, &batches);
  if (!s) {
    char text[32], time[32];
    int64_t used = batches * rt_batch(r, e), all = data_samples(d);
    fprintf(r->env->out, "loss %s\n", str_float(text, (float)loss));
    if (!r->opt.quiet)
      fprintf(r->env->out, "over %" PRId64 " samples in %s\n", used,
              rt_seconds(rt_now() - start, time));
    if (used < all && !r->opt.quiet)
      fprintf(r->env->err,
              "note: the last %" PRId64 " of %" PRId64 " samples do not fill a batch of %" PRId64
              " and are left out\n",
              all - used, all, rt_batch(r, e));
    rt_print_profile(r, "batch", true);
  }
  data_close(d);
  return s;
}
