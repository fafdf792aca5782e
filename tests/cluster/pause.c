/* Process 1 of a cluster's namespaces and of every pod's sandbox: waits, reaps what is orphaned, ends on SIGTERM and SIGINT. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void) {
    sigset_t awaited;
    int signal_number;

    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    for (;;) {
        if (sigwait(&awaited, &signal_number) != 0)
            continue;
        if (signal_number != SIGCHLD)
            return 0;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}
