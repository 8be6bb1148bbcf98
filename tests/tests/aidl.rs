// SPDX-License-Identifier: Apache-2.0

//! The interface compiled by AOSP's AIDL compiler: to Java, compiled by javac against the few
//! methods of android.os that it uses, and to C++.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use clat_tests::can_run;

/// What the generated Java uses of the platform, as android.jar declares it.
const ANDROID_OS: [(&str, &str); 7] = [
    ("IInterface", "interface IInterface { IBinder asBinder(); }"),
    (
        "IBinder",
        "interface IBinder {
            int FIRST_CALL_TRANSACTION = 1;
            int INTERFACE_TRANSACTION = 0x5f4e5446;
            int FLAG_ONEWAY = 1;
            IInterface queryLocalInterface(String descriptor);
            boolean transact(int code, Parcel data, Parcel reply, int flags) throws RemoteException;
        }",
    ),
    (
        "Binder",
        "class Binder implements IBinder {
            public void attachInterface(IInterface owner, String descriptor) {}
            public IInterface queryLocalInterface(String descriptor) { return null; }
            public boolean transact(int code, Parcel data, Parcel reply, int flags)
                    throws RemoteException { return onTransact(code, data, reply, flags); }
            protected boolean onTransact(int code, Parcel data, Parcel reply, int flags)
                    throws RemoteException { return false; }
        }",
    ),
    ("RemoteException", "class RemoteException extends Exception {}"),
    (
        "BadParcelableException",
        "class BadParcelableException extends RuntimeException {
            public BadParcelableException(String message) { super(message); }
        }",
    ),
    (
        "Parcelable",
        "interface Parcelable {
            int PARCELABLE_WRITE_RETURN_VALUE = 1;
            int describeContents();
            void writeToParcel(Parcel to, int flags);
            interface Creator<T> { T createFromParcel(Parcel from); T[] newArray(int size); }
        }",
    ),
    (
        "Parcel",
        "abstract class Parcel {
            public static Parcel obtain() { return null; }
            public static Parcel obtain(IBinder binder) { return null; }
            public abstract void recycle();
            public abstract int dataPosition();
            public abstract void setDataPosition(int position);
            public abstract void enforceInterface(String descriptor);
            public abstract void enforceNoDataAvail();
            public abstract void writeInterfaceToken(String descriptor);
            public abstract void readException();
            public abstract void writeNoException();
            public abstract boolean readBoolean();
            public abstract void writeBoolean(boolean value);
            public abstract int readInt();
            public abstract void writeInt(int value);
            public abstract long readLong();
            public abstract void writeLong(long value);
            public abstract String readString();
            public abstract void writeString(String value);
            public abstract String[] createStringArray();
            public abstract void writeStringArray(String[] value);
            public abstract IBinder readStrongBinder();
            public abstract void writeStrongBinder(IBinder value);
            public abstract void writeStrongInterface(IInterface value);
            public abstract <T extends Parcelable> void writeTypedObject(T value, int flags);
            public abstract <T> T readTypedObject(Parcelable.Creator<T> creator);
            public abstract <T extends Parcelable> void writeTypedArray(T[] value, int flags);
            public abstract <T> T[] createTypedArray(Parcelable.Creator<T> creator);
        }",
    ),
];

/// A temporary folder.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("clat-aidl-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{command:?}: {said}");
    Ok(())
}

/// Every file below `folder` with this ending.
fn below(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(below(&path, ending)?);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Compiles the interface to `language` and returns the generated files with this ending.
fn compile(language: &str, to: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aidl");
    let sources = below(&root.join("android"), "aidl")?;
    let mut aidl = Command::new("aidl");
    aidl.args(["--structured", &format!("--lang={language}"), "-I"]).arg(&root);
    aidl.arg("-o").arg(to);
    if language == "cpp" {
        aidl.arg("-h").arg(to);
    }
    run(aidl.args(&sources))?;
    let made = below(to, ending)?;
    ensure!(made.len() == sources.len(), "{made:?} of {sources:?}");
    Ok(made)
}

#[test]
fn java() -> Result<()> {
    if !can_run(&["aidl", "javac"]) {
        return Ok(());
    }
    let folder = Folder::new("java")?;
    let mut sources = compile("java", &folder.0, "java")?;
    for (name, declaration) in ANDROID_OS {
        let file = folder.0.join(format!("{name}.java"));
        fs::write(&file, format!("package android.os;\npublic {declaration}\n"))?;
        sources.push(file);
    }
    run(Command::new("javac").arg("-nowarn").arg("-d").arg(&folder.0).args(&sources))
}

#[test]
fn cpp() -> Result<()> {
    if !can_run(&["aidl"]) {
        return Ok(());
    }
    let folder = Folder::new("cpp")?;
    let sources = compile("cpp", &folder.0, "cpp")?;
    let controller = sources.iter().find(|path| path.ends_with("IClatdController.cpp"));
    let controller = fs::read_to_string(controller.context("no IClatdController.cpp")?)?;
    // netd forwards with its own types: text as std::string, errors as a Status.
    let call = "::android::binder::Status BpClatdController::clatdStart(const ::std::string& \
                ifName, const ::std::string& nat64Prefix, ::std::string* _aidl_return)";
    ensure!(controller.contains(call), "{controller}");
    Ok(())
}
