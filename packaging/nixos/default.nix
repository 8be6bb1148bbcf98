# SPDX-License-Identifier: Apache-2.0
# Not built yet.
{ pkgs ? import <nixpkgs> { } }:
pkgs.rustPlatform.buildRustPackage {
  pname = "clat";
  version = "0.1.0";
  src = ../..;
  cargoLock.lockFile = ../../Cargo.lock;
  nativeBuildInputs = with pkgs; [ clang gnumake pkg-config ];
  buildInputs = with pkgs; [ elfutils zlib libbpf ];
  # The tests need root, namespaces and Debian's programs.
  doCheck = false;
  postInstall = ''
    mkdir -p $out/libexec/clat $out/lib/systemd/system
    mv $out/bin/clatd $out/libexec/clat/clatd
    install -m0755 packaging/systemd/stopped $out/libexec/clat/stopped
    substitute packaging/systemd/clat.service $out/lib/systemd/system/clat.service \
      --replace-fail /usr/sbin/ $out/bin/ --replace-fail /usr/libexec/ $out/libexec/
  '';
}
