// A small arm64 program for tests of transports: does what its first word says.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char** argv) {
  const char* word = argc > 1 ? argv[1] : "";
  const char* value = argc > 2 ? argv[2] : "";
  if (strcmp(word, "words") == 0) {  // each behind its length
    for (int i = 2; i < argc; ++i) printf("%zu:%s\n", strlen(argv[i]), argv[i]);
  } else if (strcmp(word, "exit") == 0) {
    fputs("error: as asked\n", stderr);
    return atoi(value);
  } else if (strcmp(word, "sleep") == 0) {
    puts("started");
    fflush(stdout);
    sleep((unsigned)atoi(value));
    puts("done");
  } else if (strcmp(word, "crash") == 0) {
    abort();
  } else if (strcmp(word, "write") == 0) {
    FILE* file = fopen(value, "w");
    if (file == NULL) return 2;
    fputs("written", file);
    return fclose(file) == 0 ? 0 : 2;
  }
  return 0;
}
