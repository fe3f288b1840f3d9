// The queues of the fake driver: what streams have to do, and in which order it is done.
#include <stdlib.h>
#include <string.h>

#include "tests/cuda_emu/fake.h"

void fake_push(fake *f, fake_work *w) {
  fake_queue *q = &f->streams[w->stream];
  if (q->n == q->cap) {
    q->cap = q->cap ? 2 * q->cap : 64;
    q->at = realloc(q->at, (size_t)q->cap * sizeof(fake_work *));
    if (!q->at) abort();
  }
  q->at[q->n++] = w;
}

static uint64_t draw(fake *f) {
  f->seed += 0x9E3779B97F4A7C15ull;
  uint64_t z = f->seed;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// The kernel sees the addresses that the emulation can use in place of those of the device.
static int execute_launch(fake *f, fake_work *w) {
  if (!w->function->kernel) return FAKE_OK;
  emu_buffer buffer[FAKE_MAX_RANGES];
  uint64_t *args = (uint64_t *)(void *)w->args;
  int n = w->function->kernel->buffers;
  if (n != w->nranges)
    return fake_wrong(f, "%s: the kernel has %d buffers, the launch %d", w->function->name, n,
                      w->nranges);
  for (int i = 0; i < n; i++) {
    unsigned char *at = fake_store(f, w->range[i].at, w->range[i].bytes, w->function->name);
    if (!at) return FAKE_WRONG;
    args[i] = (uint64_t)(uintptr_t)at;
    // The first micro-batch's part of a sum reads what it then leaves out.
    if (w->range[i].use == (EMU_READ | EMU_WRITE) && w->range[i].bytes)
      memset(fake_marks(f, w->range[i].at), 1, (size_t)w->range[i].bytes);
    buffer[i] = (emu_buffer){.at = at,
                             .bytes = w->range[i].bytes,
                             .use = w->range[i].use,
                             .written = fake_marks(f, w->range[i].at)};
  }
  unsigned char *step = fake_store(f, args[n], sizeof(prog_step), w->function->name);
  if (!step) return FAKE_WRONG;
  args[n] = (uint64_t)(uintptr_t)step;
  emu_launch_info l = {.kernel = w->function->kernel,
                       .blocks = w->grid,
                       .threads = (int)w->block,
                       .shared_bytes = (int)w->shared,
                       .args = args,
                       .buffer = buffer,
                       .nbuffers = n,
                       .order = f->kernel_seed ? EMU_SEEDED : EMU_FORWARD,
                       .seed = f->kernel_seed + (uint64_t)f->executed};
  char error[512] = "";
  f->executed++;
  if (f->launch(&l, error, sizeof error)) return fake_wrong(f, "%s", error);
  return FAKE_OK;
}

static int execute(fake *f, fake_work *w) {
  unsigned char *to, *from;
  switch (w->kind) {
    case FAKE_LAUNCH: return execute_launch(f, w);
    case FAKE_SET:
      to = fake_store(f, w->to, (int64_t)w->bytes, "memset");
      if (to) memset(to, w->value, w->bytes), memset(fake_marks(f, w->to), 1, w->bytes);
      return to ? FAKE_OK : FAKE_WRONG;
    case FAKE_COPY:
      to = fake_store(f, w->to, (int64_t)w->bytes, "copy to");
      from = fake_store(f, w->from, (int64_t)w->bytes, "copy from");
      if (to && from) {
        memcpy(to, from, w->bytes);
        memcpy(fake_marks(f, w->to), fake_marks(f, w->from), w->bytes);
      }
      return to && from ? FAKE_OK : FAKE_WRONG;
    case FAKE_IN:
      to = fake_store(f, w->to, (int64_t)w->bytes, "copy to the device");
      if (to) memcpy(to, w->copied ? w->copied : (unsigned char *)(uintptr_t)w->from, w->bytes);
      if (to) memset(fake_marks(f, w->to), 1, w->bytes);
      return to ? FAKE_OK : FAKE_WRONG;
    case FAKE_OUT:
      from = fake_store(f, w->from, (int64_t)w->bytes, "copy from the device");
      if (from) memcpy((unsigned char *)(uintptr_t)w->to, from, w->bytes);
      return from ? FAKE_OK : FAKE_WRONG;
    case FAKE_RECORD:
      if (w->ticket > f->events.at[w->event].done) f->events.at[w->event].done = w->ticket;
      return FAKE_OK;
    case FAKE_WAIT: return FAKE_OK;
  }
  return FAKE_OK;
}

static bool ready(const fake *f, const fake_queue *q) {
  if (q->next == q->n) return false;
  const fake_work *w = q->at[q->next];
  return w->kind != FAKE_WAIT || f->events.at[w->event].done >= w->ticket;
}

int fake_drain(fake *f, int stream) {
  fake_queue *want = &f->streams[stream];
  int code = FAKE_OK;
  while (want->next < want->n) {
    int able[FAKE_STREAMS], n = 0;
    for (int i = 0; i < FAKE_STREAMS; i++)
      if (ready(f, &f->streams[i])) able[n++] = i;
    if (n == 0) return fake_wrong(f, "stream %d waits for an event that never comes", stream);
    // Of two streams the same one goes on for a while, so that it gets far ahead.
    fake_queue *q = &f->streams[able[draw(f) % (uint64_t)n]];
    for (uint64_t k = draw(f) % 8 + 1; k > 0 && ready(f, q); k--) {
      fake_work *w = q->at[q->next++];
      int one = execute(f, w);
      if (one != FAKE_OK) code = one;
      free(w->copied);
      free(w->args);
      free(w);
    }
    if (q->next == q->n) q->next = q->n = 0;
  }
  return code;
}
