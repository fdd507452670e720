// Asks the CPU which instruction sets it runs, and measures how fast it multiplies with them.
#include "cpu/dispatch.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace genhoi::cpu {

#if defined(__x86_64__)
namespace {

// What __builtin_cpu_supports does not know in every compiler: AMX is leaf 7, EDX bit 24 (tiles)
// and 22 (bf16); AVX512-BF16 is leaf 7.1, EAX bit 5; F16C is leaf 1, ECX bit 29 (the latter two are
// usable wherever AVX-512 and AVX2 are).
bool has_amx(int bit) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> bit & 1) != 0;
}

bool has_avx512bf16_bit() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
}

bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512bf16() { return has_avx512() && has_avx512bf16_bit(); }

// Whether the operating system lets this process use the tile registers, which it must be asked.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx_bf16() { return has_avx512bf16() && has_amx(24) && has_amx(22) && may_use_tiles(); }

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> known = {{&kAmxKernels, has_amx_bf16()},
                                         {&kAvx512Bf16Kernels, has_avx512bf16()},
                                         {&kAvx512Kernels, has_avx512()},
                                         {&kAvx2Kernels, has_avx2()},
                                         {&kPortableKernels, true}};
  return known;
}

std::vector<Feature> cpu_features() {
  return {{"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"f16c", has_f16c()},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512bf16", has_avx512bf16_bit()},
          {"amx_tile", has_amx(24)},
          {"amx_bf16", has_amx(22)}};
}
#else
const std::vector<Isa>& isas() {
  static const std::vector<Isa> known = {{&kPortableKernels, true}};
  return known;
}

std::vector<Feature> cpu_features() { return {}; }
#endif

const Kernels& kernels() {
  const char* wanted = std::getenv("GENHOI_CPU_ISA");
  std::string names;
  for (const Isa& isa : isas()) {
    if (wanted == nullptr || *wanted == '\0') {
      if (isa.usable) return *isa.kernels;
    } else if (isa.kernels->name == std::string(wanted)) {
      if (isa.usable) return *isa.kernels;
      throw std::runtime_error("GENHOI_CPU_ISA: this CPU does not run " + std::string(wanted));
    }
    names += (names.empty() ? "" : ", ") + std::string(isa.kernels->name);
  }
  throw std::runtime_error("GENHOI_CPU_ISA: got " + std::string(wanted ? wanted : "") +
                           ", wanted one of " + names);
}

double peak_flops(DType dtype, const Pool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kTimes = 1 << 20;
  struct Context {
    DType dtype;
    std::vector<double> done;
  } context{dtype, std::vector<double>(pool.threads)};
  double best = 0.;
  for (int round = 0; round < 5; round++) {  // the first wakes threads and clocks up
    const auto start = Clock::now();
    pool.run(
        pool.threads,
        [](int64_t begin, int64_t end, void* p) {
          auto& at = *static_cast<Context*>(p);
          for (int64_t i = begin; i < end; i++)
            at.done[i] = kernels().repeat_products(at.dtype, kTimes);
        },
        &context);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    double operations = 0.;
    for (const double done : context.done) operations += done;
    best = std::max(best, operations / seconds);
  }
  return best;
}

}  // namespace genhoi::cpu
