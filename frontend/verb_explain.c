// dsmc explain [CODE], dsmc help [COMMAND]: the tables, for reading.
#include <stdio.h>
#include <string.h>

#include "frontend/cli.h"
#include "passes/pass.h"
#include "runtime/base/str.h"

static void put_paragraph(const char *text) {
  int column = 0;
  while (*text) {
    int n = (int)strcspn(text, " \n");
    if (column && column + 1 + n > 100) {
      putchar('\n');
      column = 0;
    } else if (column) {
      putchar(' ');
      column++;
    }
    printf("%.*s", n, text);
    column += n;
    text += n;
    if (*text == '\n') {
      putchar('\n');
      column = 0;
    }
    while (*text == ' ' || *text == '\n') text++;
  }
  putchar('\n');
}

static void put_example(const char *title, const char *text) {
  if (!*text) return;
  printf("\n%s\n", title);
  while (*text) {
    int n = (int)strcspn(text, "\n");
    printf("  %.*s\n", n, text);
    text += n + (text[n] == '\n');
  }
}

int verb_explain(cli *c) {
  if (c->files.n == 0) {
    for (int i = 0; i < DIAG_CODES; i++) {
      const diag_info *d = diag_info_of((diag_code)i);
      printf("%-24s %s\n", d->word, d->summary);
    }
    return EXIT_GOOD;
  }
  // `[unknown-key]`, as it is printed, is taken too.
  const char *word = c->files.at[0];
  size_t n = strlen(word);
  if (n > 2 && word[0] == '[' && word[n - 1] == ']')
    word = arena_strndup(c->arena, word + 1, n - 2);
  diag_code code = diag_find(word);
  if (code == DIAG_CODES) {
    const char *names[DIAG_CODES];
    for (int i = 0; i < DIAG_CODES; i++) names[i] = diag_info_of((diag_code)i)->word;
    const char *near = str_nearest(word, names, DIAG_CODES);
    return near ? cli_usage("there is no diagnostic `%s`; did you mean `%s`?", word, near)
                : cli_usage("there is no diagnostic `%s`; `dsmc explain` lists them", word);
  }
  const diag_info *d = diag_info_of(code);
  printf("%s: %s\n\n", d->word, d->summary);
  put_paragraph(d->text);
  put_example("wrong", d->failing);
  put_example("right", d->fixed);
  return EXIT_GOOD;
}

// What `--skip` takes: each optional pass once, then the choices.
static int help_skip(void) {
  const pass_info *pass;
  const choice_info *choice;
  const char *names[SKIP_ROWS];
  pass_list(&pass);
  int choices = choice_list(&choice), n = skip_names(names) - choices;
  printf("dsmc build --skip NAME[,NAME]\n  leaves out what a program does without, bit for bit\n");
  printf("\noptional passes\n");
  for (int i = 0; i < n; i++) {
    int row = 0;
    while (!pass[row].optional || !str_eq(pass[row].name, names[i])) row++;
    printf("  %-14s %s\n", names[i], pass[row].doc);
  }
  printf("\nparts of a pass, or of the lowering of kernels\n");
  for (int i = 0; i < choices; i++)
    printf("  %-14s %s: %s\n", choice[i].name, choice[i].of, choice[i].doc);
  return EXIT_GOOD;
}

int verb_help(cli *c) {
  const char *topic = c->files.n ? c->files.at[0] : NULL;
  if (topic && str_eq(topic, "skip")) return help_skip();
  if (topic && strcmp(topic, "all") != 0 && cli_verb(topic) < 0) {
    const char *names[64];
    const char *near = str_nearest(topic, names, cli_verb_names(names, 64));
    return near ? cli_usage("there is no command `%s`; did you mean `%s`?", topic, near)
                : cli_usage("there is no command `%s`; `dsmc help` lists them", topic);
  }
  cli_help(stdout, topic);
  return EXIT_GOOD;
}
