mod decode;
mod desired;
mod keep;
mod readiness;
mod renames;
mod stability;
