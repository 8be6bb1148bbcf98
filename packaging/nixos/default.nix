# SPDX-License-Identifier: Apache-2.0
# The unit is for `systemd.packages`; user and group `clat` are for `users`.
{ pkgs ? import <nixpkgs> { } }:
pkgs.rustPlatform.buildRustPackage {
  pname = "clat";
  version = "0.1.0";
  src = ../..;
  cargoLock.lockFile = ../../Cargo.lock;
  cargoBuildFlags = pkgs.lib.concatMap (package: [ "-p" package ])
    [ "clatd" "clat_controller" "clatctl" "clat_plat" "clat_tests" ]
    ++ pkgs.lib.concatMap (program: [ "--bin" program ])
    [ "clatd" "clat_controller" "clatctl" "platd" "pages" ];
  nativeBuildInputs = with pkgs; [ clang gnumake pkg-config installShellFiles ];
  buildInputs = with pkgs; [ elfutils zlib libbpf ];
  # The tests need root, namespaces and Debian's programs.
  doCheck = false;
  # The controller looks for clatd beside itself.
  postInstall = ''
    $out/bin/pages pages
    rm $out/bin/pages
    installManPage pages/man/*
    installShellCompletion --bash pages/bash/*.bash --fish pages/fish/*.fish --zsh pages/zsh/_*
    mkdir -p $out/libexec/clat $out/lib/systemd/system
    substitute packaging/systemd/stopped $out/libexec/clat/stopped --replace-fail /usr/sbin/ $out/bin/
    chmod 0755 $out/libexec/clat/stopped
    substitute packaging/systemd/clat.service $out/lib/systemd/system/clat.service \
      --replace-fail /usr/sbin/ $out/bin/ --replace-fail /usr/libexec/ $out/libexec/ \
      --replace-fail +mkdir +${pkgs.coreutils}/bin/mkdir \
      --replace-fail /bin/kill ${pkgs.util-linux}/bin/kill
  '';
}
