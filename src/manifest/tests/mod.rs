mod decode;
mod desired;
mod keep;
<<<<<<< HEAD
mod readiness;
=======
mod renames;
>>>>>>> main
mod stability;
