// dsmc ir FILE: the program in one of its forms.
#include <stdio.h>

#include "frontend/verb_gpu.h"
#include "ir/print.h"

static int unknown_pass(const char *name) {
  const pass_info *p;
  int n = pass_list(&p);
  const char *names[64];
  int k = 0;
  for (int i = 0; i < n && k < 64; i++) {
    if (str_eq(p[i].name, name)) return EXIT_GOOD;
    names[k++] = p[i].name;
  }
  const char *near = str_nearest(name, names, k);
  return cli_usage("ir: no pass `%s`%s%s%s", name, near ? "; did you mean `" : "", near ? near : "",
                   near ? "`?" : "");
}

// A form of which there is one for each stage of a pipeline.
static void print_form(cli *c, const char *form, ir_module *m, const sched *s, cg_context *cg) {
  if (str_eq(form, "schedule")) {
    fputs(sched_print(s, c->arena), stdout);
  } else if (str_eq(form, "kernel")) {
    sb text = {.arena = c->arena};
    cg_print_kernels(cg, &text);
    fputs(sb_str(&text), stdout);
  } else {
    fputs(ir_print(m, c->arena), stdout);
  }
}

int verb_ir(cli *c) {
  const char *form = cli_get(c, OPT_FORM), *after = cli_get(c, OPT_AFTER);
  if (after && unknown_pass(after)) return EXIT_USAGE;
  bool partly = after || cli_has(c, OPT_PASS);
  if (form && str_eq(form, "dot")) {
    fprintf(stderr, "dsmc: `--form %s` is planned, not built\n", form);
    return EXIT_INPUT;
  }
  bool cuda = form && str_eq(form, "cuda");
  if (cli_has(c, OPT_COST) && !cuda) return cli_usage("ir: --cost goes with --form cuda");
  if (cli_has(c, OPT_JSON) && !cli_has(c, OPT_COST))
    return cli_usage("ir: --json goes with --cost");
  compile_stage stage = COMPILE_SCHEDULE;
  if (!form && !partly) form = "graph";
  if (form && str_eq(form, "graph")) stage = partly ? COMPILE_LOCAL : COMPILE_GRAPH;
  if (form && str_eq(form, "local")) stage = COMPILE_LOCAL;
  compiled k;
  if (!compile(c, c->files.at[0], stage, &k)) return compile_finish(c, &k);
  if (k.targets && form && str_eq(form, "llvm"))
    return cli_usage("ir: --form llvm is for --target cpu; GPUs have --form cuda");
  // Behind --after the form is the one that the passes have come to.
  if (!form) form = k.schedule ? "schedule" : "local";
  if (stage == COMPILE_SCHEDULE && !str_eq(form, "local") &&
      !(k.schedule && (k.schedule->place || str_eq(form, "schedule"))))
    return cli_usage("ir: the passes asked for end before there is a form `%s`", form);
  bool plain = stage <= COMPILE_LOCAL || str_eq(form, "local") || str_eq(form, "schedule") ||
               str_eq(form, "kernel");
  for (int i = 0; i < k.nstages && plain; i++) {
    const compiled_stage *st = &k.stage[i];
    printf("%s; stage %d of %d\n", i ? "\n" : "", i, k.nstages);
    print_form(c, form, st->module, st->schedule, st->cg);
  }
  if (plain) {
    if (!k.nstages) print_form(c, form, k.module, k.schedule, k.cg);
  } else if (cuda) {
    return gpu_print(c, &k);
  } else {
    cg_target target = {.want_ir = true};
    const char *why = cg_compile(k.cg, &target, &k.image);
    if (why) IR_BUG("codegen: %s", why);
    fputs(k.image.ir ? k.image.ir : "", stdout);
  }
  return compile_finish(c, &k);
}
