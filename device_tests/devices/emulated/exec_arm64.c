// Preloaded into the emulated device's shell and tools: starts arm64 programs under qemu, as the kernel of a phone
// starts them itself. Without EMULATED_CPU (a device of another ABI) they fail with "Exec format error", as there.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char** environ;

static int is_arm64(const char* path) {
  unsigned char head[20] = {0};
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t got = read(file, head, sizeof head);
  close(file);
  return got == sizeof head && memcmp(head, "\177ELF", 4) == 0 && head[18] == 183;  // EM_AARCH64
}

int execve(const char* path, char* const argv[], char* const envp[]) {
  if (access(path, X_OK) != 0 || !is_arm64(path)) return (int)syscall(SYS_execve, path, argv, envp);
  const char *emulator = getenv("EMULATED_BY"), *cpu = getenv("EMULATED_CPU");
  if (emulator == NULL || cpu == NULL || *cpu == '\0') {
    errno = ENOEXEC;
    return -1;
  }
  size_t words = 0, settings = 0, kept = 0;
  while (argv[words] != NULL) ++words;
  while (envp[settings] != NULL) ++settings;
  const char** command = calloc(words + 8, sizeof *command);
  const char** environment = calloc(settings + 1, sizeof *environment);
  if (command == NULL || environment == NULL) return -1;
  const char* prefix[] = {emulator, "-cpu", cpu, "-0", words > 0 ? argv[0] : path, path};
  memcpy(command, prefix, sizeof prefix);
  for (size_t i = 1; i < words; ++i) command[5 + i] = argv[i];
  for (size_t i = 0; i < settings; ++i) {  // this library is not for the guest
    if (strncmp(envp[i], "LD_PRELOAD=", 11) != 0) environment[kept++] = envp[i];
  }
  return (int)syscall(SYS_execve, emulator, command, environment);
}

int execv(const char* path, char* const argv[]) { return execve(path, argv, environ); }

int execvp(const char* file, char* const argv[]) {
  if (strchr(file, '/') != NULL) return execve(file, argv, environ);
  const char* path = getenv("PATH");
  char place[4096];
  for (const char* at = path; at != NULL && *at != '\0';) {
    const size_t length = strcspn(at, ":");
    if (length > 0 && length + strlen(file) + 2 <= sizeof place) {
      memcpy(place, at, length);
      place[length] = '/';
      strcpy(place + length + 1, file);
      if (access(place, X_OK) == 0) return execve(place, argv, environ);
    }
    at += length + (at[length] == ':');
  }
  errno = ENOENT;
  return -1;
}
