// Every access of a kernel: where it may go, whether it is aligned, whether somebody wrote what it
// reads, and who else touches the same bytes without a barrier between (emu_run.h: time).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda_emu/emu_run.h"

// A kernel is given addresses from which its buffer can be told, whatever it adds to them: number
// of the buffer from bit 40 on, the first byte in the middle of the 2^40 with the low bits of the
// real address (so that alignment is the same). Bit 62 makes them addresses of nothing.
#define VIEW_MARK ((uint64_t)1 << 62)
#define VIEW_BITS 40
#define VIEW_LOW 0xfffu

static int by_address(const void *a, const void *b) {
  const emu_buffer *const *x = a, *const *y = b;
  return (*x)->at<(*y)->at ? -1 : (*x)->at>(*y)->at;
}

// Pieces of memory: buffers that overlap are one.
static void find_pieces(emu_run *e) {
  const emu_launch_info *l = e->launch;
  const emu_buffer *sorted[EMU_MAX_BUFFERS];
  for (int i = 0; i < l->nbuffers; i++) sorted[i] = &l->buffer[i];
  qsort(sorted, (size_t)l->nbuffers, sizeof *sorted, by_address);
  e->npieces = 0;
  for (int i = 0; i < l->nbuffers; i++) {
    unsigned char *at = sorted[i]->at, *end = at + sorted[i]->bytes;
    emu_piece *last = e->npieces ? &e->piece[e->npieces - 1] : NULL;
    if (last && at < last->end) {
      if (end > last->end) last->end = end;
    } else if (end > at) {
      e->piece[e->npieces++] = (emu_piece){.at = at, .end = end};
    }
  }
}

const char *emu_memory_open(void) {
  emu_run *e = &emu_it;
  const emu_launch_info *l = e->launch;
  if (!e->shared) {
    e->shared = malloc(EMU_MAX_SHARED);
    e->shared_shadow = calloc(EMU_MAX_SHARED, sizeof *e->shared_shadow);
    if (!e->shared || !e->shared_shadow) return "no memory for shared memory";
  }
  memset(e->shared, 0xcb, (size_t)l->shared_bytes);
  find_pieces(e);
  for (int i = 0; i < e->npieces; i++) {
    emu_piece *p = &e->piece[i];
    p->shadow = calloc((size_t)(p->end - p->at), sizeof *p->shadow);
    if (!p->shadow) return "no memory to watch the buffers";
  }
  void **word = e->args;
  for (int i = 0; i < l->nbuffers; i++) {
    const emu_buffer *b = &l->buffer[i];
    emu_view *v = &e->view[i];
    *v = (emu_view){.at = b->at, .bytes = b->bytes, .use = b->use, .written = b->written};
    v->first = VIEW_MARK | (uint64_t)(i + 1) << VIEW_BITS | (uint64_t)1 << (VIEW_BITS - 1) |
               ((uint64_t)(uintptr_t)b->at & VIEW_LOW);
    for (int k = 0; k < e->npieces && b->bytes; k++)
      if (v->at >= e->piece[k].at && v->at < e->piece[k].end)
        v->shadow = e->piece[k].shadow + (v->at - e->piece[k].at);
    word[i] = (void *)(uintptr_t)v->first;
  }
  return NULL;
}

void emu_memory_close(void) {
  for (int i = 0; i < emu_it.npieces; i++) free(emu_it.piece[i].shadow);
  emu_it.npieces = 0;
}

// ---- races --------------------------------------------------------------------------------------

typedef struct access {
  int thread, line, bytes;
  bool write, global;
  int64_t at;          // in the buffer or in shared memory
  const emu_view *in;  // NULL: shared memory
} access;

static const char *said(const access *x, char *text, size_t n) {
  const char *what = x->write ? "write" : "read";
  if (!x->in)
    snprintf(text, n, "shared %s of bytes %lld..%lld", what, (long long)x->at,
             (long long)x->at + x->bytes - 1);
  else
    snprintf(text, n, "global %s of bytes %lld..%lld of buffer %d", what, (long long)x->at,
             (long long)x->at + x->bytes - 1, (int)(x->in - emu_it.view));
  return text;
}

_Noreturn static void fails(const access *x, const char *what) {
  char text[128];
  emu_fail(x->thread, x->line, "%s %s", said(x, text, sizeof text), what);
}

_Noreturn static void races(const access *x, const emu_shadow *s, bool with_write) {
  char text[128], who[64];
  int id = with_write ? s->writer & ~EMU_FLIGHT : s->reader & ~EMU_EARLIER;
  uint32_t when = with_write ? s->written : s->read;
  bool earlier = when < emu_it.block_clock || (!with_write && s->reader & EMU_EARLIER);
  if (earlier)
    snprintf(who, sizeof who, "another block");
  else if (!with_write && id == EMU_WARPS)
    snprintf(who, sizeof who, "threads of several warps");
  else if (!with_write && id & EMU_LANES_OF)
    snprintf(who, sizeof who, "lanes of warp %d", id & ~EMU_LANES_OF);
  else
    snprintf(who, sizeof who, "thread %d", id);
  emu_fail(x->thread, x->line, "%s races with a %s by %s%s", said(x, text, sizeof text),
           with_write ? "write" : "read", who, earlier ? "" : ": no barrier is between them");
}

// May `thread` of a warp at `clock` and a later access of time `when` by `other` be swapped?
static bool unordered(const emu_run *e, int thread, uint32_t clock, int other, uint32_t when) {
  if (when < e->interval || other == thread) return false;
  return other / EMU_LANES != thread / EMU_LANES || when == clock;
}

static void check_writer(const emu_run *e, const access *x, const emu_shadow *s, uint32_t clock) {
  if (!s->written) return;
  if (s->written < e->block_clock) {
    if (x->global) races(x, s, true);
    return;
  }
  if (s->writer & EMU_FLIGHT) fails(x, "while a copy to them is under way");
  if (unordered(e, x->thread, clock, s->writer, s->written)) races(x, s, true);
}

static void check_readers(const emu_run *e, const access *x, const emu_shadow *s, uint32_t clock) {
  if (!s->read) return;
  if (s->read < e->block_clock || s->reader & EMU_EARLIER) {
    if (x->global) races(x, s, false);
    if (s->read < e->block_clock) return;
  }
  if (s->read < e->interval) return;
  int id = s->reader & ~EMU_EARLIER;
  if (id == EMU_WARPS) races(x, s, false);
  if (id & EMU_LANES_OF) {
    if ((id & ~EMU_LANES_OF) != x->thread / EMU_LANES || s->read == clock) races(x, s, false);
  } else if (unordered(e, x->thread, clock, id, s->read)) {
    races(x, s, false);
  }
}

static void note_reader(const emu_run *e, int thread, emu_shadow *s, uint32_t clock) {
  int warp = thread / EMU_LANES, id = s->reader & ~EMU_EARLIER;
  int earlier = s->read && s->read < e->block_clock ? EMU_EARLIER : s->reader & EMU_EARLIER;
  if (s->read >= e->interval) {
    int its_warp = id & EMU_LANES_OF ? id & ~EMU_LANES_OF : id / EMU_LANES;
    if (id == EMU_WARPS || its_warp != warp)
      thread = EMU_WARPS;
    else if (s->read == clock && id != thread)
      thread = EMU_LANES_OF | warp;
  }
  s->reader = (uint16_t)(thread | earlier);
  s->read = clock;
}

static void watch(const access *x, emu_shadow *s) {
  const emu_run *e = &emu_it;
  uint32_t clock = e->warp[x->thread / EMU_LANES].clock;
  for (int i = 0; i < x->bytes; i++, s++) {
    check_writer(e, x, s, clock);
    if (!x->write) {
      note_reader(e, x->thread, s, clock);
      continue;
    }
    check_readers(e, x, s, clock);
    *s = (emu_shadow){.written = clock, .writer = (uint16_t)x->thread};
  }
}

// Bytes first .. last of an access are the ones to blame.
_Noreturn static void unwritten(access x, int first, int last) {
  x.at += first;
  x.bytes = last - first + 1;
  fails(&x, "that nobody wrote");
}

// ---- global memory ------------------------------------------------------------------------------

static unsigned char *global(int thread, const void *p, int bytes, bool write, int line) {
  emu_run *e = &emu_it;
  uint64_t address = (uint64_t)(uintptr_t)p;
  uint64_t number = (address & ~VIEW_MARK) >> VIEW_BITS;
  if (!(address & VIEW_MARK) || number < 1 || number > (uint64_t)e->launch->nbuffers)
    emu_fail(thread, line, "global %s at %p, which is in no buffer", write ? "write" : "read", p);
  emu_view *v = &e->view[number - 1];
  access x = {thread, line, bytes, write, true, (int64_t)(address - v->first), v};
  if (x.at < 0 || x.at + bytes > v->bytes) {
    char text[64];
    snprintf(text, sizeof text, "is outside: it has %lld bytes", (long long)v->bytes);
    fails(&x, text);
  }
  if (address % (uint64_t)bytes) fails(&x, "is not aligned to its width");
  if (!(v->use & (write ? EMU_WRITE : EMU_READ))) fails(&x, "is not what the buffer is for");
  watch(&x, v->shadow + x.at);
  unsigned char *written = v->written ? v->written + x.at : NULL;
  if (written && write) memset(written, 1, (size_t)bytes);
  if (written && !write && memchr(written, 0, (size_t)bytes)) {
    int first = 0, last = bytes - 1;
    while (written[first]) first++;
    while (written[last]) last--;
    unwritten(x, first, last);
  }
  return v->at + x.at;
}

const void *emu_global_read(const void *p, int bytes, int line) {
  return global(emu_now.thread, p, bytes, false, line);
}

void *emu_global_write(void *p, int bytes, int line) {
  return global(emu_now.thread, p, bytes, true, line);
}

// ---- shared memory ------------------------------------------------------------------------------

static unsigned char *shared(int thread, int at, int bytes, bool write, int line) {
  emu_run *e = &emu_it;
  access x = {thread, line, bytes, write, false, at, NULL};
  if (at < 0 || at + bytes > e->launch->shared_bytes) {
    char text[64];
    snprintf(text, sizeof text, "is outside: the block has %d bytes", e->launch->shared_bytes);
    fails(&x, text);
  }
  if (at % bytes) fails(&x, "is not aligned to its width");
  emu_shadow *s = e->shared_shadow + at;
  if (!write) {
    int first = -1, last = -1;
    for (int i = 0; i < bytes; i++)
      if (s[i].written < e->block_clock) first = first < 0 ? i : first, last = i;
    if (first >= 0) unwritten(x, first, last);
  }
  watch(&x, s);
  return e->shared + at;
}

const void *emu_shared_read(int at, int bytes, int line) {
  return shared(emu_now.thread, at, bytes, false, line);
}

void *emu_shared_write(int at, int bytes, int line) {
  return shared(emu_now.thread, at, bytes, true, line);
}

const unsigned char *emu_row(int thread, int at, int line) {
  return shared(thread, at, 16, false, line);
}

// ---- copies -------------------------------------------------------------------------------------
// The bytes are moved when the copy begins, but nobody may touch them until the thread that began
// it has waited; for others it wrote them at that moment.

void emu_copy16(int at, const void *p, int line) {
  int thread = emu_now.thread;
  emu_thread *t = &emu_it.thread[thread];
  const unsigned char *from = global(thread, p, 16, false, line);
  unsigned char *to = shared(thread, at, 16, true, line);
  memcpy(to, from, 16);
  for (int i = 0; i < 16; i++) emu_it.shared_shadow[at + i].writer |= EMU_FLIGHT;
  if (t->flights == t->flight_room) {
    int room = t->flight_room ? 2 * t->flight_room : 16;
    emu_flight *more = realloc(t->flight, sizeof *more * (size_t)room);
    if (!more) emu_fail(thread, line, "no memory to remember a copy");
    t->flight = more;
    t->flight_room = room;
  }
  t->flight[t->flights++] = (emu_flight){at, t->group};
}

void emu_copies_end(void) { emu_it.thread[emu_now.thread].group++; }

void emu_copies_wait(int groups) {
  emu_thread *t = &emu_it.thread[emu_now.thread];
  uint32_t clock = emu_it.warp[emu_now.thread / EMU_LANES].clock;
  int left = 0;
  for (int i = 0; i < t->flights; i++) {
    emu_flight f = t->flight[i];
    if ((int64_t)f.group >= (int64_t)t->group - groups) {
      t->flight[left++] = f;
      continue;
    }
    for (int k = 0; k < 16; k++) {
      emu_shadow *s = &emu_it.shared_shadow[f.at + k];
      s->writer = (uint16_t)(s->writer & ~EMU_FLIGHT);
      s->written = clock;
    }
  }
  t->flights = left;
}
