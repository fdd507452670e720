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
bool of_torch(const std::string& path) {
  return path.compare(path.find_last_of('/') + 1, 8, "libtorch") == 0;
}

std::vector<std::string> torch_libraries() {
  std::vector<std::string> found;
  const auto add = [](dl_phdr_info* object, size_t, void* to) {
    if (of_torch(object->dlpi_name)) {
      static_cast<std::vector<std::string>*>(to)->emplace_back(object->dlpi_name);
    }
    return 0;
  };
  dl_iterate_phdr(add, &found);
  return found;
}
#else
std::vector<std::string> torch_libraries() { return {}; }
#endif

}  // namespace

// Python loads torch for itself only (RTLD_LOCAL), so that the default search does not see it. The
// usual name of its CUDA library alone is no help: whoever packages torch may have changed it.
void* torch_function(const char* name) {
  if (void* found = dlsym(RTLD_DEFAULT, name)) return found;
  std::string looked_in;
  for (const std::string& path : torch_libraries()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) continue;
    void* found = dlsym(library, name);
    dlclose(library);  // torch itself keeps it
    if (found != nullptr) return found;
    looked_in += (looked_in.empty() ? "" : ", ") + path;
  }
  throw std::runtime_error(std::string("no library of torch in this process has ") + name +
                           "; looked in " + (looked_in.empty() ? "none" : looked_in));
}

}  // namespace genhoi::cuda
