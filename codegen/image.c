// A relocatable ELF object to a flat position-independent image: the little of a linker we need.
//
// Sections that take memory are laid one behind the other (code, then constants); references among
// them are relative (PC32, PLT32, PC64) and are filled in here. Everything else is refused:
// writable sections, absolute addresses, undefined symbols. LLVM made the object a moment ago, so a
// refusal is our bug, but the input is checked like any file.
#include <elf.h>
#include <string.h>

#include "codegen/emit.h"

typedef struct object {
  arena *arena;
  const unsigned char *at;
  size_t n;
  const Elf64_Ehdr *header;
  const Elf64_Shdr *section;
  const char *names;
  int64_t *place;  // by section: offset in the image, -1 when it is not in it
} object;

static bool within(const object *o, uint64_t offset, uint64_t size) {
  return offset <= o->n && size <= o->n - offset;
}

static const char *section_name(const object *o, const Elf64_Shdr *s) {
  return o->names + s->sh_name;
}

static const char *open_object(object *o) {
  o->header = (const Elf64_Ehdr *)(const void *)o->at;
  if (o->n < sizeof *o->header || memcmp(o->header->e_ident, ELFMAG, SELFMAG) != 0)
    return "code generation gave no ELF object";
  if (o->header->e_machine != EM_X86_64 || o->header->e_type != ET_REL)
    return "object of another kind";
  uint64_t table = (uint64_t)o->header->e_shnum * sizeof(Elf64_Shdr);
  if (!within(o, o->header->e_shoff, table) || o->header->e_shstrndx >= o->header->e_shnum)
    return "section table out of bounds";
  o->section = (const Elf64_Shdr *)(const void *)(o->at + o->header->e_shoff);
  for (int i = 0; i < o->header->e_shnum; i++) {
    const Elf64_Shdr *s = &o->section[i];
    if (s->sh_type != SHT_NOBITS && !within(o, s->sh_offset, s->sh_size))
      return "section out of bounds";
  }
  o->names = (const char *)o->at + o->section[o->header->e_shstrndx].sh_offset;
  return NULL;
}

// Gives every section that takes memory its place; code first.
static const char *place_sections(object *o, int64_t *bytes) {
  int n = o->header->e_shnum;
  o->place = arena_new(o->arena, int64_t, n);
  for (int i = 0; i < n; i++) o->place[i] = -1;
  for (int code = 1; code >= 0; code--) {
    for (int i = 0; i < n; i++) {
      const Elf64_Shdr *s = &o->section[i];
      if (!(s->sh_flags & SHF_ALLOC) || s->sh_size == 0 || !!(s->sh_flags & SHF_EXECINSTR) != code)
        continue;
      if (str_starts(section_name(o, s), ".eh_frame")) continue;  // nothing unwinds through kernels
      if ((s->sh_flags & SHF_WRITE) || s->sh_type == SHT_NOBITS)
        return arena_printf(o->arena, "kernels have writable data (%s)", section_name(o, s));
      int64_t align = s->sh_addralign > 1 ? (int64_t)s->sh_addralign : 1;
      o->place[i] = (*bytes + align - 1) / align * align;
      *bytes = o->place[i] + (int64_t)s->sh_size;
    }
  }
  return NULL;
}

static const char *symbol_name(const object *o, const Elf64_Shdr *symbols, const Elf64_Sym *y) {
  return (const char *)o->at + o->section[symbols->sh_link].sh_offset + y->st_name;
}

// Where a symbol is in the image, or -1.
static int64_t symbol_place(const object *o, const Elf64_Sym *y) {
  if (y->st_shndx == SHN_UNDEF || y->st_shndx >= o->header->e_shnum || o->place[y->st_shndx] < 0)
    return -1;
  return o->place[y->st_shndx] + (int64_t)y->st_value;
}

static const char *relocate(const object *o, const Elf64_Shdr *rel, unsigned char *image) {
  int64_t base = o->place[rel->sh_info];
  const Elf64_Shdr *target = &o->section[rel->sh_info], *symbols = &o->section[rel->sh_link];
  const Elf64_Sym *symbol = (const Elf64_Sym *)(const void *)(o->at + symbols->sh_offset);
  const Elf64_Rela *r = (const Elf64_Rela *)(const void *)(o->at + rel->sh_offset);
  for (uint64_t i = 0; i < rel->sh_size / sizeof *r; i++) {
    uint64_t index = ELF64_R_SYM(r[i].r_info);
    if (index >= symbols->sh_size / sizeof *symbol) return "relocation out of bounds";
    int64_t to = symbol_place(o, &symbol[index]);
    if (to < 0)
      return arena_printf(o->arena, "kernels refer to `%s`",
                          symbol_name(o, symbols, &symbol[index]));
    int64_t at = base + (int64_t)r[i].r_offset, v = to + r[i].r_addend - at;
    uint64_t width = ELF64_R_TYPE(r[i].r_info) == R_X86_64_PC64 ? 8 : 4;
    if (r[i].r_offset > target->sh_size || target->sh_size - r[i].r_offset < width)
      return "relocation out of bounds";
    switch (ELF64_R_TYPE(r[i].r_info)) {
      case R_X86_64_PC32:
      case R_X86_64_PLT32: {
        if (v != (int32_t)v) return "code image over 2 GiB";
        int32_t w = (int32_t)v;
        memcpy(image + at, &w, sizeof w);
        break;
      }
      case R_X86_64_PC64: memcpy(image + at, &v, sizeof v); break;
      default:
        return arena_printf(o->arena, "relocation type %d in kernels",
                            (int)ELF64_R_TYPE(r[i].r_info));
    }
  }
  return NULL;
}

static int64_t find_symbol(const object *o, const char *name) {
  for (int i = 0; i < o->header->e_shnum; i++) {
    const Elf64_Shdr *s = &o->section[i];
    if (s->sh_type != SHT_SYMTAB) continue;
    const Elf64_Sym *y = (const Elf64_Sym *)(const void *)(o->at + s->sh_offset);
    for (uint64_t j = 0; j < s->sh_size / sizeof *y; j++)
      if (ELF64_ST_TYPE(y[j].st_info) == STT_FUNC && str_eq(symbol_name(o, s, &y[j]), name))
        return symbol_place(o, &y[j]);
  }
  return -1;
}

const char *image_layout(arena *a, const unsigned char *bytes, size_t n, const char *const *symbol,
                         int nsymbols, cg_image *out) {
  object o = {.arena = a, .at = bytes, .n = n};
  const char *why = open_object(&o);
  out->n = 0;
  if (!why) why = place_sections(&o, &out->n);
  if (why) return why;
  out->bytes = arena_alloc(a, (size_t)out->n);
  for (int i = 0; i < o.header->e_shnum; i++)
    if (o.place[i] >= 0)
      memcpy(out->bytes + o.place[i], bytes + o.section[i].sh_offset, o.section[i].sh_size);
  for (int i = 0; i < o.header->e_shnum && !why; i++) {
    const Elf64_Shdr *s = &o.section[i];
    if (s->sh_type == SHT_RELA && s->sh_info < o.header->e_shnum && o.place[s->sh_info] >= 0)
      why = relocate(&o, s, out->bytes);
  }
  if (why) return why;
  out->offset = arena_new(a, int64_t, nsymbols + 1);
  for (int i = 0; i < nsymbols; i++) {
    out->offset[i] = find_symbol(&o, symbol[i]);
    if (out->offset[i] < 0) return arena_printf(a, "no code for kernel `%s`", symbol[i]);
  }
  return NULL;
}
