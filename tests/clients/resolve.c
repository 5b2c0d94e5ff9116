/* Looks names up with the C library that it is linked with. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

int main(int count, char **names) {
    for (int index = 1; index < count; index++) {
        struct addrinfo hints, *found;
        memset(&hints, 0, sizeof hints);
        hints.ai_family = AF_INET;
        hints.ai_socktype = SOCK_STREAM;
        int failed = getaddrinfo(names[index], NULL, &hints, &found);
        if (failed) {
            printf("%s %s\n", names[index], failed == EAI_NONAME ? "no such name" : gai_strerror(failed));
            continue;
        }
        char text[64];
        inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text);
        printf("%s %s\n", names[index], text);
    }
    return 0;
}
