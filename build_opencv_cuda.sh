#!/bin/sh
# Builds OpenCV with its CUDA flow methods from its source distribution, and installs it in place of
# the usual wheel: docs/gpu.md says what it needs and how far this has been seen.
# usage: build_opencv_cuda.sh FOLDER_OF_PYTHON_AND_PIP
#   CUDA_ARCH_BIN=9.0   compute capabilities to build for   [those of the GPUs here]
#   JOBS=8              compilers at a time                 [all cores]
#   OPENCV_CMAKE_ARGS   more arguments for CMake
set -eu
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
[ -x "$nvcc" ] || { echo "no nvcc on the PATH or in CUDA_HOME: install the CUDA toolkit" >&2; exit 2; }
arch=${CUDA_ARCH_BIN:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
	sort -u | paste -sd, -)}
printf '#include <nppi.h>\n#include <cublas_v2.h>\n#include <cufft.h>\n' |
	"$nvcc" -x cu -c -o /dev/null - ||
	{ echo "$nvcc does not compile, or lacks NPP, cuBLAS or cuFFT: install them" >&2; exit 2; }
[ -n "$arch" ] || { echo "no GPU seen by nvidia-smi: set CUDA_ARCH_BIN, as 9.0" >&2; exit 2; }

version=$("$1/pip" list --format freeze 2>/dev/null | sed -n 's/^opencv-contrib-python.*==//p')
[ -n "$version" ] || { echo "no opencv-contrib-python in $1: pip install it first" >&2; exit 2; }
modules=core,imgproc,imgcodecs,videoio,highgui,video,optflow,ximgproc,python3
modules=$modules,python_bindings_generator,cudev,cudaarithm,cudafilters,cudaimgproc,cudawarping
modules=$modules,cudafeatures2d,cudalegacy,cudaoptflow # Brox is in cudalegacy
export CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}" CUDACXX="$nvcc"
# What is off would be fetched from elsewhere (IPP, a font, ADE) or needs more of CUDA.
export CMAKE_ARGS="-DWITH_CUDA=ON -DCUDA_ARCH_BIN=$arch -DCUDA_ARCH_PTX= -DBUILD_LIST=$modules \
${CUDA_HOME:+-DCUDA_TOOLKIT_ROOT_DIR=$CUDA_HOME} -DWITH_IPP=OFF -DWITH_UNIFONT=OFF -DWITH_ADE=OFF \
-DWITH_FFMPEG=OFF -DWITH_OPENEXR=OFF -DBUILD_OPENEXR=OFF -DWITH_CUDNN=OFF -DWITH_NVCUVID=OFF \
-DWITH_NVCUVENC=OFF ${OPENCV_CMAKE_ARGS:-}"
echo "building OpenCV $version for compute capability $arch with $CMAKE_BUILD_PARALLEL_LEVEL compilers" >&2
"$1/pip" wheel --no-deps --no-binary opencv-contrib-python-headless --wheel-dir build/opencv-cuda \
	-v "opencv-contrib-python-headless==$version"

# CMake leaves CUDA out where it does not find it, and goes on: look before the usual wheel goes.
"$1/pip" install --quiet --no-deps --target build/opencv-cuda/tried --upgrade \
	build/opencv-cuda/opencv_contrib_python_headless-*.whl
PYTHONPATH=build/opencv-cuda/tried "$1/python" -c 'import cv2; cv2.cuda.BroxOpticalFlow_create'
"$1/pip" uninstall --yes opencv-contrib-python opencv-contrib-python-headless
"$1/pip" install --no-deps build/opencv-cuda/opencv_contrib_python_headless-*.whl
"$1/python" -c 'import cv2; print(cv2.__version__, cv2.cuda.BroxOpticalFlow_create,
	cv2.cuda.getCudaEnabledDeviceCount(), "GPUs")'
