mod decode;
mod desired;
mod keep;
mod readiness;
mod stability;
