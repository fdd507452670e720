/* Stand-in libcudart.so.13; symbols not defined here are generated as calls that succeed and do
 * nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core.h"
static __thread int last,
    when; /* the last error, and the epoch it belongs to: Python's clear() starts a new one */
static int ret(int e) {
  if (e) {
    last = e;
    when = emu_epoch();
  }
  return e;
}
static int last_error(void) { return emu_sticky() ? emu_sticky() : when == emu_epoch() ? last : 0; }
#define STICKY()           \
  do {                     \
    int s_ = emu_sticky(); \
    if (s_) return s_;     \
  } while (0)
#define DEFAULT(n)                                                                        \
  API int n() {                                                                           \
    static int once;                                                                      \
    if (!once++ && getenv("EMUGPU_VERBOSE")) fprintf(stderr, "emugpu: default %s\n", #n); \
    return 0;                                                                             \
  }
#define NOT_EMULATED(n)                             \
  API int n() {                                     \
    int e = emu_call(OP_UNSUPPORTED, (void*)#n, 0); \
    return ret(e ? e : ERR_NOT_SUPPORTED);          \
  }

/* ---- registration ---- */
static const void* mods[8192];
static int nm;
typedef struct Var {
  const void* host;
  const char* name;
  size_t size;
  const void* image;
  void* dev;
  struct Var* next;
} Var;
static Var* vars;
API void** __cudaRegisterFatBinary(void* f) {
  mods[nm] = f;
  return (void**)&mods[nm++];
}
API void __cudaRegisterFatBinaryEnd(void** h) {}
API void __cudaUnregisterFatBinary(void** h) {}
API char __cudaInitModule(void** h) { return 1; }
API void __cudaRegisterFunction(void** h, const char* hf, char* df, const char* dn, int tl, void* a,
                                void* b, void* c, void* d, int* w) {
  emu_kernel_new(hf, dn, h ? *(const void**)h : 0, 0);
}
API void __cudaRegisterVar(void** h, char* hv, char* da, const char* dn, int ext, size_t s, int c,
                           int g) {
  Var* v = calloc(1, sizeof *v);
  v->host = hv;
  v->name = strdup(dn);
  v->size = s;
  v->image = *(const void**)h;
  v->next = vars;
  vars = v;
}
static Var* var_of(const void* host) {
  for (Var* v = vars; v; v = v->next)
    if (v->host == host) return v;
  return 0;
}
API void* emuSymbol(const void* image, const char* name, size_t size) {
  for (Var* v = vars; v; v = v->next)
    if (v->image == image && !strcmp(v->name, name)) {
      if (!v->dev) v->dev = emu_alloc(v->size);
      return v->dev;
    }
  return 0;
}
/* the module must be loaded (its initial values written) before a symbol is touched by the host */
static void* var_dev(const void* host) {
  Var* v = var_of(host);
  if (!v) return 0;
  if (!v->dev) emu_call(OP_LOAD_DATA, (void*)v->image, -1);
  if (!v->dev) v->dev = emu_alloc(v->size);
  return v->dev;
}
API int cudaGetSymbolAddress(void** p, const void* s) {
  *p = var_dev(s);
  return ret(*p ? 0 : 13);
}
API int cudaGetSymbolSize(size_t* n, const void* s) {
  Var* v = var_of(s);
  if (!v) return ret(13);
  *n = v->size;
  return 0;
}
API int cudaMemcpyToSymbol(const void* s, const void* src, size_t n, size_t off, int k) {
  char* d = var_dev(s);
  if (!d) return ret(13);
  memmove(d + off, src, n);
  return 0;
}
API int cudaMemcpyToSymbolAsync(const void* s, const void* src, size_t n, size_t off, int k,
                                void* st) {
  return cudaMemcpyToSymbol(s, src, n, off, k);
}
API int cudaMemcpyFromSymbol(void* dst, const void* s, size_t n, size_t off, int k) {
  char* d = var_dev(s);
  if (!d) return ret(13);
  memmove(dst, d + off, n);
  return 0;
}

/* ---- launch ---- */
static __thread struct {
  dim3_t g, b;
  size_t s;
  void* st;
} cfg[16];
static __thread int ncfg;
API unsigned __cudaPushCallConfiguration(dim3_t g, dim3_t b, size_t s, void* st) {
  cfg[ncfg].g = g;
  cfg[ncfg].b = b;
  cfg[ncfg].s = s;
  cfg[ncfg].st = st;
  ncfg++;
  return 0;
}
API int __cudaPopCallConfiguration(dim3_t* g, dim3_t* b, size_t* s, void** st) {
  ncfg--;
  *g = cfg[ncfg].g;
  *b = cfg[ncfg].b;
  *s = cfg[ncfg].s;
  *st = cfg[ncfg].st;
  return 0;
}
API int __cudaGetKernel(void** k, const void* f) {
  *k = (void*)f;
  return 0;
}
static const dim3_t one = {1, 1, 1};
API int cudaLaunchKernel(const void* f, dim3_t g, dim3_t b, void** a, size_t s, void* st) {
  return ret(emu_launch(emu_kernel_of(f), g, b, s, st, a, 0, one, 0));
}
API int __cudaLaunchKernel(void* k, dim3_t g, dim3_t b, void** a, size_t s, void* st) {
  return cudaLaunchKernel(k, g, b, a, s, st);
}
API int cudaLaunchCooperativeKernel(const void* f, dim3_t g, dim3_t b, void** a, size_t s,
                                    void* st) {
  return ret(emu_launch(emu_kernel_of(f), g, b, s, st, a, 0, one, 1));
}
typedef struct {
  dim3_t g, b;
  size_t smem;
  void* st;
  void* attrs;
  unsigned n;
} LC;
API int cudaLaunchKernelExC(const LC* c, const void* f, void** a) {
  dim3_t cl = one;
  int coop = 0;
  for (unsigned i = 0; i < c->n; i++) {
    unsigned* q = (unsigned*)((char*)c->attrs + 72 * i);
    if (q[0] == 4) cl = (dim3_t){q[2], q[3], q[4]};
    if (q[0] == 2) coop = q[2];
  }
  return ret(emu_launch(emu_kernel_of(f), c->g, c->b, c->smem, c->st, a, 0, cl, coop));
}
API int cudaFuncSetAttribute(const void* f, int a, int v) {
  Kernel* k = emu_kernel_of(f);
  if (!k) return ret(98);
  if (a == 8) {
    if (v > emu_smem_optin() || v < 0) return ret(ERR_INVALID);
    k->smem_max = v;
  }
  return 0;
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int t, size_t s) {
  *n = emu_occupancy(t, s);
  return 0;
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int t,
                                                               size_t s, unsigned fl) {
  *n = emu_occupancy(t, s);
  return 0;
}
API long emuStaticSmem(const void* f) {
  Kernel* k = emu_kernel_of(f);
  return k ? emu_call(OP_STATIC_SMEM, k, 0) : 0;
}

/* ---- errors: sticky until Python has raised the exception ---- */
API int cudaGetLastError(void) {
  int e = last_error();
  last = 0;
  return e;
}
API int cudaPeekAtLastError(void) { return last_error(); }
API const char* cudaGetErrorString(int e) { return emu_error_string(e); }
API const char* cudaGetErrorName(int e) {
  static __thread char b[64];
  snprintf(b, 64, "cudaError%d", e);
  return b;
}

/* ---- one device ---- */
API int cudaGetDevice(int* d) {
  *d = emu_device();
  return 0;
}
API int cudaSetDevice(int d) { return ret(emu_set_device(d)); }
API int cudaGetDeviceCount(int* n) {
  *n = emu_devices();
  return 0;
}
API int cudaDriverGetVersion(int* v) {
  *v = DRIVER_VERSION;
  return 0;
}
API int cudaRuntimeGetVersion(int* v) {
  *v = 13000;
  return 0;
}
API int cudaDeviceGetAttribute(int* v, int a, int d) {
  *v = emu_device_attr(a);
  return 0;
}
API int cudaDeviceGetStreamPriorityRange(int* a, int* b) {
  *a = 0;
  *b = -5;
  return 0;
}
API int cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:00:00.0");
  return 0;
}
API int cudaDeviceCanAccessPeer(int* v, int a, int b) {
  *v = 0;
  return 0;
}
API int cudaDeviceSynchronize(void) {
  STICKY();
  return 0;
}
API int cudaMemGetInfo(size_t* f, size_t* t);

/* ---- memory ---- */
extern uint64_t emuLiveBytes(void), emuCapacity(void);
API int cudaMemGetInfo(size_t* f, size_t* t) {
  *t = emuCapacity();
  *f = *t - emuLiveBytes();
  return 0;
}
API int cudaMalloc(void** p, size_t n) {
  STICKY();
  *p = emu_alloc(n);
  return ret(*p ? 0 : ERR_OOM);
}
API int cudaFree(void* p) { return ret(emu_free(p)); }
API int cudaMallocAsync(void** p, size_t n, void* s) { return cudaMalloc(p, n); }
API int cudaMallocManaged(void** p, size_t n, unsigned f) { return cudaMalloc(p, n); }
API int cudaFreeAsync(void* p, void* s) { return cudaFree(p); }
typedef struct Pin {
  char* p;
  size_t n;
  struct Pin* next;
} Pin;
static Pin* pins;
static int pin_lock;
static void lock(void) { while (__atomic_exchange_n(&pin_lock, 1, __ATOMIC_ACQUIRE)); }
static void unlock(void) { __atomic_store_n(&pin_lock, 0, __ATOMIC_RELEASE); }
static void pin(void* p, size_t n) {
  Pin* x = malloc(sizeof *x);
  x->p = p;
  x->n = n;
  lock();
  x->next = pins;
  pins = x;
  unlock();
}
static void unpin(void* p) {
  lock();
  for (Pin** x = &pins; *x; x = &(*x)->next)
    if ((*x)->p == p) {
      Pin* d = *x;
      *x = d->next;
      free(d);
      break;
    }
  unlock();
}
static int pinned(const char* p) {
  lock();
  Pin* x = pins;
  while (x && !(p >= x->p && p < x->p + x->n)) x = x->next;
  unlock();
  return x != 0;
}
API int cudaHostAlloc(void** p, size_t n, unsigned f) {
  if (posix_memalign(p, 4096, n ? n : 1)) return ret(ERR_OOM);
  pin(*p, n ? n : 1);
  return 0;
}
API int cudaHostRegister(void* p, size_t n, unsigned f) {
  pin(p, n);
  return 0;
}
API int cudaHostUnregister(void* p) {
  unpin(p);
  return 0;
}
API int cudaHostGetDevicePointer(void** d, void* h, unsigned f) {
  int e = emu_call(OP_UNSUPPORTED, "cudaHostGetDevicePointer (zero-copy host memory)", 0);
  return ret(e ? e : ERR_NOT_SUPPORTED);
}
API int cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
API int cudaFreeHost(void* p) {
  unpin(p);
  free(p);
  return 0;
}
static int copy(void* d, const void* s,
                size_t n) { /* a range that begins in a device block must stay inside it */
  if (!n) return 0;
  Block* b;
  if ((uint64_t)d >> 44 == 1 &&
      (!(b = emu_block_of(d)) || b->freed || (uint64_t)d + n > b->base + b->size))
    return ret(ERR_INVALID);
  if ((uint64_t)s >> 44 == 1 &&
      (!(b = emu_block_of(s)) || b->freed || (uint64_t)s + n > b->base + b->size))
    return ret(ERR_INVALID);
  memmove(d, s, n);
  return 0;
}
API int cudaMemcpy(void* d, const void* s, size_t n, int k) {
  STICKY();
  return copy(d, s, n);
}
API int cudaMemcpyAsync(void* d, const void* s, size_t n, int k, void* st) {
  STICKY();
  return copy(d, s, n);
}
API int cudaMemcpyPeerAsync(void* d, int dd, const void* s, int sd, size_t n, void* st) {
  STICKY();
  return copy(d, s, n);
}
API int cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, int k,
                          void* st) {
  STICKY();
  for (size_t i = 0; i < h; i++) {
    int e = copy((char*)d + i * dp, (const char*)s + i * sp, w);
    if (e) return e;
  }
  return 0;
}
API int cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, int k) {
  return cudaMemcpy2DAsync(d, dp, s, sp, w, h, k, 0);
}
API int cudaMemset(void* d, int v, size_t n) {
  STICKY();
  Block* b = emu_block_of(d);
  if (n && (!b || b->freed || (uint64_t)d + n > b->base + b->size)) return ret(ERR_INVALID);
  memset(d, v, n);
  return 0;
}
API int cudaMemsetAsync(void* d, int v, size_t n, void* st) { return cudaMemset(d, v, n); }
typedef struct {
  int type, device;
  void *dev, *host;
} PA;
API int cudaPointerGetAttributes(PA* a, const void* p) {
  Block* b = emu_block_of(p);
  memset(a, 0, sizeof *a);
  a->type = b && !b->freed ? 2 : !b && pinned(p) ? 1 : 0;
  a->device = b ? (int)b->device : -2;
  a->dev = b ? (void*)p : 0;
  a->host = b ? 0 : (void*)p;
  return 0;
}

/* ---- streams and events (everything is done when the call returns) ---- */
API int cudaStreamCreateWithPriority(void** s, unsigned f, int p) {
  static uint32_t n = 0x1000;
  *s = (void*)((uint64_t)(emu_device() + 1) << 32 | __atomic_add_fetch(&n, 16, __ATOMIC_SEQ_CST));
  return 0;
}
API int cudaStreamCreateWithFlags(void** s, unsigned f) {
  return cudaStreamCreateWithPriority(s, f, 0);
}
API int cudaStreamCreate(void** s) { return cudaStreamCreateWithPriority(s, 0, 0); }
API int cudaStreamGetPriority(void* s, int* p) {
  *p = 0;
  return 0;
}
API int cudaStreamIsCapturing(void* s, int* c) {
  *c = 0;
  return 0;
}
API int cudaStreamGetCaptureInfo(void* s, int* c) {
  *c = 0;
  return 0;
}
API int cudaStreamSynchronize(void* s) {
  STICKY();
  return 0;
}
API int cudaStreamQuery(void* s) {
  STICKY();
  return 0;
}
API int cudaStreamAddCallback(void* s, void (*f)(void*, int, void*), void* u, unsigned fl) {
  f(s, 0, u);
  return 0;
}
API int cudaLaunchHostFunc(void* s, void (*f)(void*), void* u) {
  f(u);
  return 0;
}
API int cudaEventCreateWithFlags(void** e, unsigned f) {
  *e = calloc(1, 8);
  return 0;
}
API int cudaEventCreate(void** e) { return cudaEventCreateWithFlags(e, 0); }
API int cudaEventDestroy(void* e) {
  free(e);
  return 0;
}
API int cudaEventRecord(void* e, void* s) {
  *(uint64_t*)e = emu_now_ns();
  return 0;
}
API int cudaEventRecordWithFlags(void* e, void* s, unsigned f) { return cudaEventRecord(e, s); }
API int cudaEventElapsedTime(float* ms, void* a, void* b) {
  *ms = (float)((*(uint64_t*)b - *(uint64_t*)a) * 1e-6);
  if (!(*ms > 1e-3f)) *ms = 1e-3f;
  return 0;
}
API int cudaThreadExchangeStreamCaptureMode(int* m) {
  *m = 0;
  return 0;
}
NOT_EMULATED(cudaStreamBeginCapture)
NOT_EMULATED(cudaStreamBeginCaptureToGraph)
NOT_EMULATED(cudaGraphInstantiateWithFlags)
NOT_EMULATED(cudaGraphLaunch)
NOT_EMULATED(cudaLibraryLoadData)
NOT_EMULATED(cudaIpcGetMemHandle)

API int cudaGetDriverEntryPointByVersion(const char* n, void** f, unsigned v, unsigned long long fl,
                                         int* st) {
  static void* h;
  if (!h) h = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *f = h ? dlsym(h, n) : 0;
  if (st) *st = *f ? 0 : 1;
  return 0;
}
API int cudaGetDriverEntryPoint(const char* n, void** f, unsigned long long fl, int* st) {
  return cudaGetDriverEntryPointByVersion(n, f, 13000, fl, st);
}
