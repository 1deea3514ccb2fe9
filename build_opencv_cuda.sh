#!/bin/sh
# Builds OpenCV with its CUDA flow methods from its source distribution, and installs it in place of
# the usual wheel. NVIDIA's compiler and libraries come as pip packages: beside pip it needs only a
# C++ compiler, and no GPU. docs/gpu.md says what was seen of it.
# usage: build_opencv_cuda.sh FOLDER_OF_PYTHON_AND_PIP
#   CUDA_ARCH_BIN=9.0   compute capabilities to build for   [those of the GPUs here]
#   JOBS=8              compilers at a time                 [all cores]
#   OPENCV_CMAKE_ARGS   more arguments for CMake
set -eu
command -v g++ >/dev/null || { echo "no g++ on the PATH: install a C++ compiler" >&2; exit 2; }
arch=${CUDA_ARCH_BIN:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
	sort -u | paste -sd, -)}
[ -n "$arch" ] || { echo "no GPU seen by nvidia-smi: set CUDA_ARCH_BIN, as 9.0" >&2; exit 2; }
wanted=$("$1/pip" list --format freeze 2>/dev/null | grep -m 1 '^opencv-contrib-python') ||
	{ echo "no opencv-contrib-python in $1: pip install it first" >&2; exit 2; }

# What compiles is in an environment of its own. Of CUDA every version is named: nvcc's own
# requirements would take parts of the newest release. They have no libnpp*.so, but .so.13.
cuda=13.0
work=$PWD/build/opencv-cuda
rm -rf "$work"
"$1/python" -m venv "$work/env"
PATH=$work/env/bin:$PATH
python -m pip install --quiet --disable-pip-version-check scikit-build==0.19.1 'setuptools<81' \
	wheel packaging ninja==1.13.2 cmake==4.4.5 'numpy>=2' "nvidia-cuda-nvcc==$cuda.*" \
	"nvidia-nvvm==$cuda.*" "nvidia-cuda-crt==$cuda.*" "nvidia-cuda-cccl==$cuda.*" \
	"nvidia-cuda-runtime==$cuda.*" "nvidia-npp==$cuda.*"
toolkit=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
ln -s lib "$toolkit/lib64"
for library in "$toolkit"/lib/*.so.*; do ln -sf "${library##*/}" "${library%%.so.*}.so"; done
printf '#include <nppi.h>\n' | "$toolkit/bin/nvcc" -x cu -c -o /dev/null -

python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$work" "$wanted"
source=$work/source
mkdir "$source"
tar xzf "$work"/opencv*.tar.gz --strip-components 1 -C "$source"
# Two modules that the flow does not call, and 55 more CUDA files that they need, are left out.
flow=$source/opencv_contrib/modules/cudaoptflow
sed -i 's/ opencv_cudaimgproc opencv_cudafeatures2d / /' "$flow/CMakeLists.txt"
sed -i 's#opencv2/cudaimgproc.hpp#opencv2/imgproc.hpp#' "$flow/src/precomp.hpp"
! grep -rn 'cudaimgproc\|cudafeatures2d' "$flow/CMakeLists.txt" "$flow/src/precomp.hpp" >&2 ||
	{ echo "$wanted: its module cudaoptflow is not as this script knows it" >&2; exit 2; }

modules=core,imgproc,imgcodecs,video,optflow,ximgproc,geometry,features,flann,python3
modules=$modules,python_bindings_generator,cudev,cudaarithm,cudawarping,cudalegacy,cudaoptflow
# What is off would be fetched from elsewhere, or taken from the system, or needs more of CUDA.
off=
for name in WITH_CUBLAS WITH_CUFFT WITH_CUDNN WITH_CUDNNJIT WITH_NVCUVID WITH_NVCUVENC WITH_IPP \
	WITH_ITT BUILD_ITT WITH_OPENCL WITH_LAPACK WITH_EIGEN WITH_PROTOBUF WITH_FLATBUFFERS \
	WITH_VULKAN WITH_QUIRC WITH_FFMPEG WITH_GSTREAMER WITH_V4L WITH_GTK WITH_QT WITH_1394 WITH_VA \
	WITH_OBSENSOR WITH_ONNXRUNTIME WITH_UNIFONT WITH_ITALICFONT WITH_HARFBUZZ BUILD_HARFBUZZ \
	WITH_TIFF WITH_WEBP WITH_OPENJPEG WITH_JASPER WITH_OPENEXR BUILD_OPENEXR WITH_AVIF \
	WITH_JPEGXL WITH_ADE; do off="$off -D$name=OFF"; done
export CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}" CUDACXX="$toolkit/bin/nvcc"
export CMAKE_ARGS="-G Ninja -DWITH_CUDA=ON -DCUDA_TOOLKIT_ROOT_DIR=$toolkit -DCUDA_ARCH_BIN=$arch \
-DCUDA_ARCH_PTX= -DCUDA_NVCC_FLAGS=-Xfatbin;-compress-all -DBUILD_LIST=$modules \
-DCMAKE_INSTALL_RPATH=\\\$ORIGIN/../nvidia/cu13/lib -DBUILD_JPEG=ON -DBUILD_PNG=ON -DBUILD_ZLIB=ON \
$off ${OPENCV_CMAKE_ARGS:-}"
echo "building $wanted for compute capability $arch with $CMAKE_BUILD_PARALLEL_LEVEL compilers" >&2
# pip keeps the wheels that it builds, also those for another compute capability.
python -m pip wheel -v --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$work" "$source"

# CMake leaves CUDA out where it does not find it, and goes on: look before the usual wheel goes.
python -m pip install --quiet --no-deps --target "$work/tried" "$work"/opencv*.whl
PYTHONPATH=$work/tried python -c 'import cv2; cv2.cuda.BroxOpticalFlow_create'
"$1/pip" install --no-deps "nvidia-npp==$cuda.*" # which the new one is linked to
"$1/pip" install --no-deps --force-reinstall "$work"/opencv*.whl
"$1/python" -c 'import cv2; print(cv2.__version__, cv2.cuda.BroxOpticalFlow_create,
	cv2.cuda.getCudaEnabledDeviceCount(), "GPUs")'
