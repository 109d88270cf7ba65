/*
 * pause holds a pod's namespaces open. It is the first process of every sandbox, and process 1 of pods that share their process
 * namespace, so it has two duties there: let the kernel reap orphans, and end at once when asked to.
 */
#include <signal.h>
#include <stddef.h>

int main(void) {
  /* Blocked, not handled: process 1 of a namespace ignores signals without a handler, and sigwait leaves no window between check and wait. */
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  if (sigprocmask(SIG_BLOCK, &stop, NULL) != 0) {
    return 1;
  }

  /* With SA_NOCLDWAIT the kernel reaps children, orphans handed to process 1 included, without a wake-up of this process. */
  struct sigaction reap = {.sa_handler = SIG_IGN, .sa_flags = SA_NOCLDWAIT};
  if (sigaction(SIGCHLD, &reap, NULL) != 0) {
    return 2;
  }

  int got = 0;
  while (sigwait(&stop, &got) != 0) {
  }
  return 0;
}
