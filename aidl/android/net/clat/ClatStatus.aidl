/*
 * Copyright (C) 2026 The clat authors
 *
 * Licensed under the Apache License, Version 2.0 (the "License");
 * you may not use this file except in compliance with the License.
 * You may obtain a copy of the License at
 *
 *      http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

package android.net.clat;

import android.net.clat.OffloadCounters;

/** One running CLAT. */
parcelable ClatStatus {
    /** The uplink's name. */
    @utf8InCpp String iface;
    /** The uplink's index. */
    int ifIndex;
    /** Name of the TUN device that carries the IPv4 side. */
    @utf8InCpp String v4iface;
    /** Its index. */
    int v4ifIndex;
    /** The NAT64 prefix with its length, "64:ff9b::/96". */
    @utf8InCpp String nat64Prefix;
    /** The CLAT's IPv4 address. */
    @utf8InCpp String v4;
    /** The CLAT's IPv6 address. */
    @utf8InCpp String v6;
    /** Routing mark of the packets that it sends. */
    int fwmark;
    /** Process id of its clatd; 0 while it is being restarted. */
    int pid;
    /** How often its clatd was restarted after dying. */
    int restarts;
    /** Milliseconds since it was started. */
    long uptimeMillis;
    /** IPv4 packets that left by v4iface, for clatd to translate. */
    long txPackets;
    /** IPv4 bytes that left by v4iface, for clatd to translate. */
    long txBytes;
    /** IPv4 packets that arrived by v4iface, translated by clatd. */
    long rxPackets;
    /** IPv4 bytes that arrived by v4iface, translated by clatd. */
    long rxBytes;
    /** Whether packets are translated in the kernel; what it leaves is for clatd. */
    boolean offloaded;
    /**
     * IPv4 packets that were to leave by v4iface, seen from the program there; null where nothing
     * is counted.
     */
    @nullable OffloadCounters egress;
    /**
     * IPv6 packets that arrived on the uplink for v6, seen from the program there; null where
     * nothing is counted.
     */
    @nullable OffloadCounters ingress;
    /**
     * "yes" or "no": whether IPv4 works, as a host on the IPv4 internet answered or not; "unknown"
     * where none was asked, or has not answered yet; empty from a controller that cannot ask.
     */
    @utf8InCpp String working;
    /**
     * What keeps packets from the programs in the kernel, a line each; empty where nothing does.
     */
    @utf8InCpp String[] hindrances;
    /**
     * The path of packets now: "direct" by the uplink itself, "device" by v4iface and the programs
     * there, "daemon" by v4iface, all through clatd; empty from a controller that does not say.
     */
    @utf8InCpp String path;
}
