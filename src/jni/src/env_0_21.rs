// SPDX-License-Identifier: Apache-2.0

//! Wrappers for what differs between jni 0.21 and 0.22; this is for 0.21.

use jni::errors::Error;
use jni::objects::{JClass, JFieldID, JObject, JString};
use jni::signature::{Primitive, ReturnType};
use jni::sys::{self, jint, jstring};
use jni::{JNIEnv, JavaVM, NativeMethod};

use crate::Native;

/// The environment that a native is called with.
pub(crate) type NativeEnv<'l> = JNIEnv<'l>;
/// The environment for calls into Java.
pub(crate) type Env<'l> = JNIEnv<'l>;

/// Runs a native; returns `failed` if there is no environment to call Java with.
pub(crate) fn entered<'l, T>(
    env: &mut NativeEnv<'l>,
    _failed: T,
    run: impl FnOnce(&mut Env<'l>) -> T,
) -> T {
    run(env)
}

/// Runs JNI_OnLoad's work with the `vm` that it is called with.
pub(crate) fn loaded<T>(
    vm: *mut sys::JavaVM,
    run: impl FnOnce(&mut Env<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    // SAFETY: the JVM passes its own address.
    let vm = unsafe { JavaVM::from_raw(vm) }?;
    run(&mut vm.get_env()?)
}

pub(crate) fn has_exception(env: &mut Env<'_>) -> bool {
    env.exception_check().unwrap_or(true)
}

pub(crate) fn clear_exception(env: &mut Env<'_>) -> Result<(), Error> {
    env.exception_clear()
}

pub(crate) fn throw_new(env: &mut Env<'_>, class: &str, message: &str) -> Result<(), Error> {
    env.throw_new(class, message)
}

pub(crate) fn find_class<'l>(env: &mut Env<'l>, name: &str) -> Result<JClass<'l>, Error> {
    env.find_class(name)
}

pub(crate) fn register(
    env: &mut Env<'_>,
    class: &JClass<'_>,
    natives: &[Native],
) -> Result<(), Error> {
    let method = |native: &Native| NativeMethod {
        name: native.name.into(),
        sig: native.signature.into(),
        fn_ptr: native.function,
    };
    env.register_native_methods(class, &natives.iter().map(method).collect::<Vec<_>>())
}

pub(crate) fn is_null<'o>(object: &impl AsRef<JObject<'o>>) -> bool {
    object.as_ref().is_null()
}

pub(crate) fn text(env: &mut Env<'_>, string: &JString<'_>) -> Result<String, Error> {
    Ok(env.get_string(string)?.into())
}

pub(crate) fn new_string(env: &mut Env<'_>, text: &str) -> Result<jstring, Error> {
    Ok(env.new_string(text)?.into_raw())
}

/// The field of type int with this name.
pub(crate) fn int_field_id(
    env: &mut Env<'_>,
    object: &JObject<'_>,
    name: &str,
) -> Result<JFieldID, Error> {
    let class = env.get_object_class(object)?;
    env.get_field_id(&class, name, "I")
}

/// The value of a field found by [`int_field_id`] in an object of that class.
pub(crate) fn int_field(
    env: &mut Env<'_>,
    object: &JObject<'_>,
    field: JFieldID,
) -> Result<jint, Error> {
    env.get_field_unchecked(object, field, ReturnType::Primitive(Primitive::Int))?.i()
}
