/* A driver's libnvidia-ml.so.1 of two GPUs for tests/test_nvml.py: the second is a MIG slice, which tells no utilisation. */
#include <stddef.h>

static int running;

int nvmlInitWithFlags(unsigned int flags) { (void)flags; running = 1; return 0; }
int nvmlShutdown(void) { running = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)(size_t)(index + 1); return 0; }
const char *nvmlErrorString(int error) { (void)error; return "not told"; }

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
    if (!running) return 1;
    total_free_used[0] = 80ULL << 30;
    total_free_used[2] = (size_t)device * (1ULL << 30);
    total_free_used[1] = total_free_used[0] - total_free_used[2];
    return 0;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned int *gpu_memory) {
    if (!running) return 1;
    if (device != (void *)1) return 3; /* NVML_ERROR_NOT_SUPPORTED */
    gpu_memory[0] = 25;
    gpu_memory[1] = 5;
    return 0;
}
