// SPDX-License-Identifier: Apache-2.0
//
// How netd hands clat to clat_controller: what stands behind INetd's clatdStart and clatdStop, and
// what else the service has to be told. An example that compiles; docs/android.md says which lines
// of netd call it.

#pragma once

#include <string>

namespace android::net::clat {

// Starts a CLAT on |iface|, which belongs to network |netId| now: the network is told on each
// start, since a service that was restarted has forgotten it. Returns 0 and the CLAT's address in
// |v6|, or a negative errno.
int start(const std::string& iface, const std::string& nat64Prefix, unsigned netId,
          std::string* v6);

// Stops the CLAT on |iface|. Returns 0 or a negative errno, -ENODEV where none runs.
int stop(const std::string& iface);

// Tells that |netId| is gone, or that |iface| has left it. What runs there ends, and another
// network may have the interface.
void networkDestroyed(unsigned netId);
void interfaceRemoved(unsigned netId, const std::string& iface);

// What dumpsys shows, each line with its newline; empty without the service.
std::string dump();

}  // namespace android::net::clat
