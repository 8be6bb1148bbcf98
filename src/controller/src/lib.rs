//! The ClatdController: lifecycle of CLATs, host, binder service.
