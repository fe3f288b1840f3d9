// An executable of dsmc: opens the program behind its own bytes and runs the command line.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/comm_mpi.h"
#include "runtime/drivers/driver.h"

// The one global: signal handlers can reach nothing else.
static volatile sig_atomic_t stop;

static void on_stop(int number) {
  // Asked a second time: the user does not want to wait for the end of the step.
  if (stop) {
    signal(number, SIG_DFL);
    raise(number);
  }
  // mpirun passes SIGUSR1 on to its ranks, where after SIGTERM it soon kills them; so that is how
  // `dsmc run` asks them to stop.
  stop = number == SIGUSR1 ? SIGTERM : number;
}

static void on_bus_error(int number) {
  (void)number;
  static const char text[] =
      "error: a file that is being read was cut short or its disk fails (SIGBUS)\n";
  ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
  _exit(n < 0 ? 1 : 1);
}

static void install(int number, void (*handler)(int)) {
  struct sigaction act;
  memset(&act, 0, sizeof act);
  act.sa_handler = handler;
  sigemptyset(&act.sa_mask);
  sigaction(number, &act, NULL);
}

int main(int argc, char **argv) {
  install(SIGTERM, on_stop);
  install(SIGUSR1, on_stop);
  install(SIGINT, on_stop);
  install(SIGBUS, on_bus_error);
  rt_env env = {.out = stdout, .err = stderr, .io = file_io_system(), .stop = &stop};
  image img;
  int rank = 0, ranks = 1;
  mpi_started(&rank, &ranks);
  status *s = image_open("/proc/self/exe", argc > 0 ? argv[0] : "this executable", rank, &img);
  if (s) return rt_report(s, stderr);
  int code = rt_run(&img, argc, argv, &env);
  image_close(&img);
  return code;
}
