// Looks for functions among the libraries of torch that the process has loaded.
#include "loaded_torch.h"

#include <dlfcn.h>
#if defined(__linux__)
#include <link.h>
#endif

#include <stdexcept>
#include <string>
#include <vector>

namespace genhoi::cuda {

namespace {

#if defined(__linux__)
bool is_of_torch(const std::string& path) {
  return path.compare(path.find_last_of('/') + 1, 8, "libtorch") == 0;
}

std::vector<std::string> torch_libraries() {
  std::vector<std::string> paths;
  const auto add = [](dl_phdr_info* object, size_t, void* to) {
    if (is_of_torch(object->dlpi_name)) {
      static_cast<std::vector<std::string>*>(to)->emplace_back(object->dlpi_name);
    }
    return 0;
  };
  dl_iterate_phdr(add, &paths);
  return paths;
}
#else
std::vector<std::string> torch_libraries() { return {}; }
#endif

}  // namespace

// Python loads torch for itself only (RTLD_LOCAL), so that the default search does not see it. The
// usual name of its CUDA library alone is no help: whoever packages torch may have changed it.
void* torch_function(const char* name) {
  if (void* function = dlsym(RTLD_DEFAULT, name)) return function;
  std::string looked_in;
  for (const std::string& path : torch_libraries()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) continue;
    void* function = dlsym(library, name);
    dlclose(library);  // torch itself keeps it
    if (function != nullptr) return function;
    looked_in += (looked_in.empty() ? "" : ", ") + path;
  }
  throw std::runtime_error(std::string("no library of torch in this process has ") + name +
                           "; looked in " + (looked_in.empty() ? "none" : looked_in));
}

}  // namespace genhoi::cuda
