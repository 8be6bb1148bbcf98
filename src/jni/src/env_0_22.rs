// SPDX-License-Identifier: Apache-2.0

//! Wrappers for what differs between jni 0.21 and 0.22; this is for 0.22.

use jni::errors::Error;
use jni::objects::{JClass, JFieldID, JObject, JString};
use jni::refs::Reference;
use jni::signature::{JavaType, Primitive, RuntimeFieldSignature};
use jni::strings::JNIString;
use jni::sys::{self, jint, jstring};
use jni::{EnvUnowned, JavaVM, NativeMethod, Outcome};

use crate::Native;

/// The environment that a native is called with.
pub(crate) type NativeEnv<'l> = EnvUnowned<'l>;
/// The environment for calls into Java.
pub(crate) type Env<'l> = jni::Env<'l>;

/// Runs a native; returns `failed` if there is no environment to call Java with.
pub(crate) fn entered<'l, T>(
    env: &mut NativeEnv<'l>,
    failed: T,
    run: impl FnOnce(&mut Env<'l>) -> T,
) -> T {
    match env.with_env(|env| Ok::<_, Error>(run(env))).into_outcome() {
        Outcome::Ok(value) => value,
        _ => failed,
    }
}

/// Runs JNI_OnLoad's work with the `vm` that it is called with.
pub(crate) fn loaded<T>(
    vm: *mut sys::JavaVM,
    run: impl FnOnce(&mut Env<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    // SAFETY: the JVM passes its own address.
    unsafe { JavaVM::from_raw(vm) }.with_top_local_frame(run)
}

pub(crate) fn has_exception(env: &mut Env<'_>) -> bool {
    env.exception_check()
}

pub(crate) fn clear_exception(env: &mut Env<'_>) -> Result<(), Error> {
    env.exception_clear();
    Ok(())
}

pub(crate) fn throw_new(env: &mut Env<'_>, class: &str, message: &str) -> Result<(), Error> {
    env.throw_new(JNIString::from(class), JNIString::from(message))
}

pub(crate) fn find_class<'l>(env: &mut Env<'l>, name: &str) -> Result<JClass<'l>, Error> {
    env.find_class(JNIString::from(name))
}

pub(crate) fn register(
    env: &mut Env<'_>,
    class: &JClass<'_>,
    natives: &[Native],
) -> Result<(), Error> {
    let text = |native: &Native| (JNIString::from(native.name), JNIString::from(native.signature));
    let texts: Vec<_> = natives.iter().map(text).collect();
    let methods = texts.iter().zip(natives).map(|((name, signature), native)| {
        // SAFETY: the table has the function of this signature.
        unsafe { NativeMethod::from_raw_parts(name, signature, native.function) }
    });
    // SAFETY: as above; they are static methods of the class.
    unsafe { env.register_native_methods(class, &methods.collect::<Vec<_>>()) }
}

pub(crate) fn is_null<'o>(object: &impl AsRef<JObject<'o>>) -> bool {
    object.as_ref().is_null()
}

pub(crate) fn text(env: &mut Env<'_>, string: &JString<'_>) -> Result<String, Error> {
    Ok(string.mutf8_chars(env)?.into())
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
    let signature = RuntimeFieldSignature::from_str("I")?;
    env.get_field_id(&class, JNIString::from(name), signature.field_signature())
}

/// The value of a field found by [`int_field_id`] in an object of that class.
pub(crate) fn int_field(
    env: &mut Env<'_>,
    object: &JObject<'_>,
    field: JFieldID,
) -> Result<jint, Error> {
    // SAFETY: the field was found in such an object, as an int.
    unsafe { env.get_field_unchecked(object, field, JavaType::Primitive(Primitive::Int)) }?.i()
}
