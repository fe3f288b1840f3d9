// dsmc check FILE...: what is wrong with these texts?
//
// Each file is read with its imports, its sections are checked, and every model and job is lowered
// as far as GRAPH; clusters are put together, that of --cluster too. A text with errors in its
// grammar or its keys is not lowered: what follows from them would only hide them.
#include <string.h>

#include "frontend/cli.h"
#include "frontend/clusters.h"
#include "frontend/sema.h"
#include "frontend/verb_common.h"

int verb_check(cli *c) {
  setting_list sets = {0};
  for (int i = 0; i < c->options[OPT_SET].n; i++) {
    const char *text = c->options[OPT_SET].at[i];
    setting_list some = parse_settings(c->arena, &c->diags,
                                       source_from_text(c->arena, "--set", text, strlen(text)));
    for (int k = 0; k < some.n; k++) vec_push(c->arena, &sets, some.at[k]);
  }
  for (int i = 0; i < c->files.n; i++) {
    int before = diags_errors(&c->diags);
    sema_program *p = sema_open(c->arena, &c->diags, c->files.at[i]);
    if (!p || diags_errors(&c->diags) != before) continue;
    FILE *out = cli_has(c, OPT_QUIET) ? NULL : stdout;
    sema_check(p, sets, out);
    const char *spec = cli_get(c, OPT_CLUSTER);
    const cl_cluster *k =
        spec ? cluster_find(c->arena, &c->diags, p, spec, compile_cache_folder(c)) : NULL;
    if (k && out) fprintf(out, "%s\n", cluster_text(c->arena, k));
  }
  return cli_finish(c);
}
