// SPDX-License-Identifier: Apache-2.0
//
// How netd calls clat_controller: the implementation of INetd's clatdStart and clatdStop, and the
// other notifications that the service needs. An example that compiles; docs/android.md says which
// lines of netd call it.

#pragma once

#include <string>

namespace android::net::clat {

// Starts a CLAT on |iface|, which belongs to network |netId|. The network is passed with each
// start, because a restarted service has forgotten it. Returns 0 and the CLAT's address in
// |v6|, or a negative errno.
int start(const std::string& iface, const std::string& nat64Prefix, unsigned netId,
          std::string* v6);

// Stops the CLAT on |iface|. Returns 0 or a negative errno, -ENODEV where none runs.
int stop(const std::string& iface);

// Reports that |netId| was destroyed, or that |iface| has left it. A CLAT there ends, and the
// interface may join another network.
void networkDestroyed(unsigned netId);
void interfaceRemoved(unsigned netId, const std::string& iface);

// The text for dumpsys, in lines; empty without the service.
std::string dump();

}  // namespace android::net::clat
