// SPDX-License-Identifier: Apache-2.0

/*
 * A caller that is none of ours: libgbinder, as Halium's and Sailfish's middleware use it.
 *
 *   foreign start IFACE PREFIX   prints the CLAT's IPv6 address
 *   foreign stop IFACE
 *   foreign dump [ARG...]        prints what the service writes
 *
 * Ends with 1, and the exception on stderr, when the service throws; with 2 when there is no
 * service.
 */
#include <gbinder.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DUMP_TRANSACTION GBINDER_FOURCC('_', 'D', 'M', 'P')

/* Of IClatdController.aidl, by their order. */
enum { CLATD_START = GBINDER_FIRST_CALL_TRANSACTION, CLATD_STOP };

static int thrown(GBinderReader *reader) {
    gint32 exception = 0, code = 0, size = 0;
    char *message;
    if (!gbinder_reader_read_int32(reader, &exception)) {
        fprintf(stderr, "foreign: a reply without a status\n");
        return 1;
    }
    if (exception == 0) return 0;
    message = gbinder_reader_read_string16(reader);
    gbinder_reader_read_int32(reader, &size); /* of a stack trace */
    gbinder_reader_read_int32(reader, &code);
    fprintf(stderr, "foreign: exception %d code %d: %s\n", exception, code, message);
    return 1;
}

int main(int argc, char **argv) {
    GBinderServiceManager *manager = gbinder_servicemanager_new("/dev/binder");
    GBinderRemoteObject *service;
    GBinderRemoteReply *reply;
    GBinderLocalRequest *request;
    GBinderClient *client;
    GBinderReader reader;
    GBinderWriter writer;
    int status = 0;
    guint32 code;
    const int dumps = argc > 1 && !strcmp(argv[1], "dump");

    if (argc < 2 || !manager || !gbinder_servicemanager_wait(manager, 5000)) return 2;
    service = gbinder_servicemanager_get_service_sync(manager, "clatd_controller", &status);
    if (!service) {
        fprintf(stderr, "foreign: no service: %d\n", status);
        return 2;
    }
    if (dumps) {
        /* A dump has no header that names the interface. */
        client = gbinder_client_new2(service, NULL, 0);
        request = gbinder_client_new_request(client);
        code = DUMP_TRANSACTION;
        gbinder_local_request_init_writer(request, &writer);
        gbinder_writer_append_fd(&writer, STDOUT_FILENO);
        gbinder_local_request_append_int32(request, argc - 2);
    } else {
        client = gbinder_client_new(service, "android.net.clat.IClatdController");
        request = gbinder_client_new_request(client);
        code = strcmp(argv[1], "start") ? CLATD_STOP : CLATD_START;
    }
    for (int i = 2; i < argc; i++) gbinder_local_request_append_string16(request, argv[i]);
    reply = gbinder_client_transact_sync_reply(client, code, request, &status);
    if (!reply || status != GBINDER_STATUS_OK) {
        fprintf(stderr, "foreign: status %d\n", status);
        return 1;
    }
    if (dumps) return 0;
    gbinder_remote_reply_init_reader(reply, &reader);
    if (thrown(&reader)) return 1;
    if (code == CLATD_START) puts(gbinder_reader_read_string16(&reader));
    return 0;
}
