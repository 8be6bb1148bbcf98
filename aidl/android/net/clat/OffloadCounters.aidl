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

import android.net.clat.ReasonCount;

/** What one program in the kernel has done since its CLAT was started. */
parcelable OffloadCounters {
    /** Packets that it translated and sent on; each segment of a super-packet counts. */
    long packets;
    /**
     * Their bytes as they came: IPv4 for egress, IPv6 for ingress. The headers of a super-packet
     * count once.
     */
    long bytes;
    /** Super-packets (GSO, GRO) among them. */
    long superPackets;
    /** Packets whose neighbour the kernel resolved; super-packets count once. */
    long neighbour;
    /** Packets that were lost: the kernel failed when they had been changed already. */
    long lost;
    /** Packets left to clatd, by reason; only reasons that occurred. Super-packets count once. */
    ReasonCount[] passed;
}
